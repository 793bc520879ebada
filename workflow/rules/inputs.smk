# Input files of the rules that depend on wildcards or on the configuration.

from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.data.sample_files import sample_files
from flowllm.io.shards import shard_name
from flowllm.io.start_files import MODEL_RECORD, flow_start_files, start_files


def sample_shards(folder):
    """Return the shards of one row in a folder; in `base`, those of the method's base."""

    def paths(wildcards):
        row = wildcards.method
        branch = BASE_OF.get(row, row) if folder == "base" else row
        return expand(
            f"{RUN}/{folder}/{branch}/shard-{{shard}}.parquet", shard=shards_of(row)
        )

    return paths


def selection_of(wildcards):
    """Return the table of the crystals that prerelax leaves out; none where it relaxes all.

    Predictions of a crystal structure are not selected, since match_csp reads them as generated.
    """
    if not CONFIG.select.skip or wildcards.method not in ROWS:
        return []
    return [f"{RUN}/selected/{wildcards.method}.parquet"]


def energies(wildcards):
    """Return the files of relaxed crystals and energies: the potential's shards, or DFT's table."""
    if wildcards.kind == "dft":
        return [f"{RUN}/dft/{wildcards.method}.parquet"]
    return sample_shards("relaxed")(wildcards)


def evaluated_shards(wildcards):
    """Return the relaxed crystals that the second potential evaluates; none for the hull."""
    row = wildcards.crystals
    if row == "hull":
        return []
    return expand(f"{RUN}/relaxed/{row}/shard-{{shard}}.parquet", shard=shards_of(row))


def evaluated_hull(wildcards):
    """Return the hull whose crystals the second potential evaluates; none for a row."""
    return [f"{RUN}/hull/potential.parquet"] if wildcards.crystals == "hull" else []


def second_energies_of(crystals):
    """Return a function of the second potential's table of a method, or of the hull.

    There is none without a second potential, and for DFT energies.
    """

    def paths(wildcards):
        if CONFIG.potential.check is None or wildcards.kind == "dft":
            return []
        name = crystals.format(method=wildcards.method)
        return [f"{RUN}/second_energies/{name}.parquet"]

    return paths


def without_braces(paths):
    """Return the sorted names of files without braces, which Snakemake reads as wildcards."""
    names = sorted(map(str, paths))
    for name in names:
        if "{" in name or "}" in name:
            raise WorkflowError(f"{name}: the name contains braces; rename the file")
    return names


def source_files(wildcards):
    """Return the files of a local source, so that a changed data file reruns the download."""
    folder = Path(CONFIG.data.source)
    found = (
        one
        for one in folder.glob("*")
        if one.suffix == ".csv" or one.suffix.lower() == ".cif"
    )
    return without_braces(found)


def files_of_start(folder):
    """Return the files of an earlier model, so that training continues from a changed one again."""
    return without_braces(start_files(folder))


def adapter_record(wildcards):
    """Return the record of the adapter that the fine-tuning continues from; none without one."""
    section = CONFIG.finetune_llm
    folder = section.start if section.method == "lora" else None
    return [
        path
        for path in files_of_start(folder)
        if os.path.basename(path) == MODEL_RECORD
    ]


def flow_start(wildcards):
    """Return the files of the earlier flow that a flow continues from; none without a start."""
    return without_braces(flow_start_files(CONFIG.train_rfm.start, wildcards.flow))


def external_files(wildcards):
    """Return the files of a row's samples, so that a changed file is read again."""
    path = Path(EXTERNAL[wildcards.external].file)
    return without_braces(explained(sample_files, path))


def pair_draws(wildcards):
    total = SIZES.num_pairs if wildcards.split == "train" else SIZES.num_val_pairs
    return draws(total, SIZES.pairs_per_shard, wildcards.shard)


def sample_draws(wildcards):
    return draws(SIZES.num_samples, SIZES.samples_per_shard, wildcards.shard)


def csp_draws(wildcards):
    return draws(SIZES.num_csp_crystals, SIZES.csp_crystals_per_shard, wildcards.shard)


def wishes_file(wildcards):
    """Return the file of a base's wishes, if it has one, so that a changed one is read again."""
    conditions = CONDITIONS_OF[wildcards.base]
    return [conditions.file] if conditions and conditions.file else []


def base_shard(wildcards):
    return f"{RUN}/base/{BASE_OF[wildcards.method]}/shard-{wildcards.shard}.parquet"


def flow_model(wildcards):
    """Return the flow of a method; none where the LLM's crystals are not refined."""
    flow = FLOW_OF[wildcards.method]
    return [f"{RUN}/rfm/{flow}"] if flow else []


def finished_runs(wildcards):
    """Return the output files of DFT runs, so that a new run is collected.

    A link to a file that is gone is left out; the stage reports it.
    """
    folder = Path(RUN) / "dft_inputs" / wildcards.method
    names = ("vasprun.xml*", "OUTCAR*", "error.*.t*", "gpaw_result.json")
    found = (path for path in folder.rglob("*") if any(map(path.match, names)))
    return without_braces(path for path in found if path.exists())


def hull_source():
    """Return the file of the potential's reference entries; none for the training crystals."""
    source = CONFIG.reference_hull.source
    return [] if source == "train" else without_braces([source])


def known_crystals():
    """Return the table of further known crystals, if there is one."""
    table = CONFIG.metrics.known_crystals
    return [] if table is None else without_braces([table])


def dft_entries(wildcards):
    """Return the file of reference entries, if the source is a file; a source is required."""
    source = CONFIG.dft_hull.source
    if source is None:
        raise WorkflowError(
            "dft_hull.source is null, but this target needs DFT energies: name matbench_discovery, "
            "mp_api, or a JSON file of DFT reference entries (docs/energies.md), for example "
            "--config dft_hull='{source: matbench_discovery}', or run the target all"
        )
    if CONFIG.dft.code == "espresso":
        raise WorkflowError(
            "dft.code is espresso, of which only inputs are written; this target reads the runs of "
            "vasp or gpaw: set dft.code, or run the target all"
        )
    return [source] if source not in (None, "mp_api", "matbench_discovery") else []


def per_crystal_metrics(wildcards):
    """Return the metrics per crystal, which dft_inputs reads for the selection candidates alone."""
    if CONFIG.dft_inputs.selection != "candidates":
        return []
    return [f"{RUN}/metrics/potential/{wildcards.method}.parquet"]


def fingerprinted(wildcards):
    """Return the files of the test split's crystals, or of a method's generated crystals."""
    if wildcards.sample == "test":
        return [f"{RUN}/crystals/test.parquet"]
    paths = f"{RUN}/generated/{wildcards.sample}/shard-{{shard}}.parquet"
    return expand(paths, shard=shards_of(wildcards.sample))


REPORT_KINDS = {"report": ["potential"], "report_dft": ["potential", "dft"]}


def report_metrics(wildcards):
    """Return the metrics with the potential's energies and, for report_dft, with DFT's."""
    kinds = REPORT_KINDS[wildcards.report]
    return [f"{RUN}/metrics/{kind}/{name}.json" for kind in kinds for name in ROWS]


# The folders of shards that the report reads, with the names of their shards.
TRAINED_FLOWS = sorted(CONFIG.used_flows)
REPORT_SHARDS = {f"relaxed/{row}": shards_of(row) for row in ROWS}
for row in [*ROWS, *CSP_METHODS]:
    REPORT_SHARDS[f"base/{BASE_OF.get(row, row)}"] = shards_of(row)
if TRAINED_FLOWS:
    REPORT_SHARDS |= {f"pairs/{split}": names for split, names in PAIR_SHARDS.items()}

# The report reads only their records: predictions have no relaxed shards from which it knows them.
PREDICTED_SHARDS = {f"generated/{row}": shards_of(row) for row in CSP_METHODS}


def report_inputs(name):
    """Return all files and folders that a report reads besides the JSON files of its metrics.

    A report without one of them would lack rows without a message.
    """
    kinds = REPORT_KINDS[name]
    paths = [f"{RUN}/metrics/{kind}/{row}.parquet" for kind in kinds for row in ROWS]
    paths += [f"{RUN}/dft/{row}.parquet" for row in ROWS if "dft" in kinds]
    paths += [
        f"{RUN}/{folder}/shard-{shard}.parquet"
        for folder, shards in REPORT_SHARDS.items()
        for shard in shards
    ]
    paths.append(f"{RUN}/crystals/rejected.parquet")
    paths += [f"{RUN}/rfm/{flow}" for flow in TRAINED_FLOWS]
    if CONFIG.asks_llm or TRAINED_FLOWS:
        paths.append(f"{RUN}/llm/adapter")
    if CONFIG.asks_llm:
        paths.append(f"{RUN}/llm/invariance.parquet")
    return paths


def output_folder(wildcards, output):
    return os.path.dirname(output[0])


def crystals_folder(wildcards, input):
    return os.path.dirname(input.crystals[0])


def options(**roles):
    """Return one command line option per file of an input, e.g. `options(pairs="pairs")`.

    All shards of a folder are one option, FOLDER=COUNT.
    """

    def words(wildcards, input):
        return [
            f"--{name}={word}"
            for name, role in roles.items()
            for word in shortened(input[role])
        ]

    return words


def shortened(paths):
    """Return paths as words of a command; shards 0 to N - 1 of one folder are FOLDER=N."""
    folder = os.path.dirname(paths[0]) if paths else ""
    shards = [f"{folder}/{shard_name(shard)}" for shard in range(len(paths))]
    return [f"{folder}={len(paths)}"] if paths and paths == shards else paths
