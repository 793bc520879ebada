"""The console command: `flowllm STAGE`, one subcommand a stage.

The workflow passes a stage's part of the configuration as JSON (`--settings`); by hand one names
configuration files instead (`--config config.yaml --config workflow/config/demo.yaml`). Heavy
imports happen inside the stage that needs them.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flowllm.config.load import check_config, load_config
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain, is_refusal
from flowllm.runtime.log import log, setup_logging
from flowllm.runtime.signals import Stopped, stop_at_once_on_sigterm

app = typer.Typer(
    help="FlowLLM: crystals from a language model, refined by Riemannian flow matching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT = Path("config.yaml")

Settings = Annotated[
    str | None, typer.Option("--settings", help="The stage's part of the configuration, as JSON.")
]
Configs = Annotated[
    list[Path] | None,
    typer.Option("--config", help="Configuration file; repeat for overlays. [config.yaml]"),
]
RowName = Annotated[str | None, typer.Option("--name", help="Name of the flow, base or method.")]
Log = Annotated[Path | None, typer.Option("--log", help="Also write the log to this file.")]
Out = Annotated[Path, typer.Option("--out", help="The output, a file or a folder.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Worker processes or threads.")]
Gpus = Annotated[int, typer.Option("--gpus", min=0, help="GPUs of this job.")]
FirstDraw = Annotated[
    int, typer.Option("--first-draw", min=0, help="Number of the shard's first draw.")
]
Count = Annotated[int, typer.Option("--count", min=1, help="Number of draws in the shard.")]


def _settings(
    stage: str, text: str | None, configs: list[Path] | None, log_path: Path | None, row: str = ""
) -> StageSettings:
    """Open the log and return the stage's settings, from JSON or from configuration files."""
    setup_logging(log_path)
    if text is not None:
        return StageSettings.from_json(stage, text)
    config = load_config(configs or [Path("config.yaml")])
    return StageSettings.from_config(stage, config, row or None)


@app.command()
def download(
    out: Out, settings: Settings = None, config: Configs = None, log_path: Log = None
) -> None:
    """Fetch the raw crystals and check them; --out is the manifest.json that lists the files."""
    from flowllm.stages import download as stage

    stage.run(_settings("download", settings, config, log_path), out=out)


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Option(help="manifest.json of download.")],
    out: Out,
    workers: Workers = 1,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Parse, reduce and check the raw crystals; --out is the folder of the three splits."""
    from flowllm.stages import prepare as stage

    given = _settings("prepare", settings, config, log_path)
    stage.run(given, manifest=manifest, out=out, workers=workers)


@app.command("fetch_model")
def fetch_model(
    name: Annotated[str, typer.Option(help="finetune_llm.base_model")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Fetch the base model into Hugging Face's cache; --out is a JSON file with its commit."""
    from flowllm.stages import fetch_model as stage

    stage.run(_settings("fetch_model", settings, config, log_path), name=name, out=out)


@app.command("finetune_llm")
def finetune_llm(
    train: Annotated[Path, typer.Option(help="crystals/train.parquet")],
    val: Annotated[Path, typer.Option(help="crystals/val.parquet")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Fine-tune the base language model with LoRA; --out is the adapter's folder."""
    from flowllm.stages import finetune_llm as stage

    stage.run(_settings("finetune_llm", settings, config, log_path), train=train, val=val, out=out)


@app.command("merge_adapter")
def merge_adapter(
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter.")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Merge the adapter into its base model; --out is a plain Hugging Face model folder."""
    from flowllm.stages import merge_adapter as stage

    stage.run(_settings("merge_adapter", settings, config, log_path), adapter=adapter, out=out)


@app.command("invariance")
def invariance(
    model: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    crystals: Annotated[Path, typer.Option(help="crystals/val.parquet")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Measure the increase in perplexity under translation and permutation (equation 9)."""
    from flowllm.stages import invariance as stage

    given = _settings("invariance", settings, config, log_path)
    stage.run(given, model=model, crystals=crystals, out=out)


@app.command("sample_pairs")
def sample_pairs(
    model: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    crystals: Annotated[Path, typer.Option(help="crystals/{split}.parquet")],
    split: Annotated[str, typer.Option(help="train or val; part of each draw's seed and id.")],
    first_draw: FirstDraw,
    count: Count,
    out: Out,
    gpus: Gpus = 0,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Sample one shard of (c0, c1) pairs with the formula's prompt."""
    from flowllm.stages import sample_pairs as stage

    stage.run(
        _settings("sample_pairs", settings, config, log_path),
        model=model,
        crystals=crystals,
        split=split,
        first_draw=first_draw,
        count=count,
        out=out,
        gpus=gpus,
    )


@app.command("train_rfm")
def train_rfm(
    pairs: Annotated[list[Path], typer.Option(help="Shards of training pairs.")],
    val_pairs: Annotated[list[Path], typer.Option(help="Shards of validation pairs.")],
    out: Out,
    row: RowName = None,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Train the velocity network of a flow on the pairs; --out is the model's folder."""
    from flowllm.stages import train_rfm as stage

    given = _settings("train_rfm", settings, config, log_path, row or "")
    stage.run(given, pairs=pairs, val_pairs=val_pairs, out=out)


@app.command("sample_base")
def sample_base(
    model: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    first_draw: FirstDraw,
    count: Count,
    out: Out,
    gpus: Gpus = 0,
    row: RowName = None,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Sample one shard of unconditional crystals."""
    from flowllm.stages import sample_base as stage

    given = _settings("sample_base", settings, config, log_path, row or "")
    stage.run(given, model=model, first_draw=first_draw, count=count, out=out, gpus=gpus)


@app.command("sample_compositions")
def sample_compositions(
    crystals: Annotated[Path, typer.Option(help="crystals/train.parquet")],
    first_draw: FirstDraw,
    count: Count,
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Draw one shard of base crystals without the language model: compositions of training."""
    from flowllm.stages import sample_compositions as stage

    given = _settings("sample_compositions", settings, config, log_path)
    stage.run(given, crystals=crystals, first_draw=first_draw, count=count, out=out)


@app.command("sample_csp")
def sample_csp(
    model: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    crystals: Annotated[Path, typer.Option(help="crystals/test.parquet")],
    first_draw: Annotated[int, typer.Option(min=0, help="Number of the first test crystal.")],
    count: Annotated[int, typer.Option(min=1, help="Number of test crystals.")],
    out: Out,
    gpus: Gpus = 0,
    row: RowName = None,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Sample one shard of crystals of the test split's formulas (structure prediction)."""
    from flowllm.stages import sample_csp as stage

    given = _settings("sample_csp", settings, config, log_path, row or "")
    stage.run(
        given,
        model=model,
        crystals=crystals,
        first_draw=first_draw,
        count=count,
        out=out,
        gpus=gpus,
    )


@app.command()
def refine(
    base: Annotated[Path, typer.Option(help="Shard of base crystals.")],
    out: Out,
    model: Annotated[Path | None, typer.Option(help="Folder of the method's flow.")] = None,
    trajectories: Annotated[Path | None, typer.Option(help="Write trajectories there.")] = None,
    row: RowName = None,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Integrate one shard of base crystals along the learned velocity field."""
    from flowllm.stages import refine as stage

    given = _settings("refine", settings, config, log_path, row or "")
    stage.run(given, base=base, model=model, out=out, trajectories=trajectories)


@app.command("import_samples")
def import_samples(
    shard: Annotated[int, typer.Option(min=0, help="Number of the shard, from 0.")],
    base: Annotated[Path, typer.Option(help="Shard to write in the place of base crystals.")],
    out: Out,
    row: RowName = None,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Read one shard of another model's samples, a row of external_samples, to be measured."""
    from flowllm.stages import import_samples as stage

    given = _settings("import_samples", settings, config, log_path, row or "")
    stage.run(given, shard=shard, base=base, out=out)


@app.command()
def prerelax(
    generated: Annotated[Path, typer.Option(help="Shard of generated crystals.")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Relax one shard of generated crystals with the potential."""
    from flowllm.stages import prerelax as stage

    stage.run(_settings("prerelax", settings, config, log_path), generated=generated, out=out)


@app.command("reference_hull")
def reference_hull(
    crystals: Annotated[Path, typer.Option(help="crystals/train.parquet")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Make the reference entries for the potential's energies."""
    from flowllm.stages import reference_hull as stage

    stage.run(_settings("reference_hull", settings, config, log_path), crystals=crystals, out=out)


@app.command("dft_hull")
def dft_hull(
    out: Out, settings: Settings = None, config: Configs = None, log_path: Log = None
) -> None:
    """Take the reference entries for DFT energies from where dft_hull.source says."""
    from flowllm.stages import dft_hull as stage

    stage.run(_settings("dft_hull", settings, config, log_path), out=out)


@app.command()
def stability(
    energies: Annotated[list[Path], typer.Option(help="Shards of relaxed crystals, or DFT's.")],
    hull: Annotated[Path, typer.Option(help="hull/{kind}.parquet")],
    kind: Annotated[str, typer.Option(help="Whose energies: potential or dft.")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Compute E_above_hull of every generated crystal."""
    from flowllm.stages import stability as stage

    given = _settings("stability", settings, config, log_path)
    stage.run(given, energies=energies, hull=hull, kind=kind, out=out)


@app.command("dft_inputs")
def dft_inputs(
    relaxed: Annotated[list[Path], typer.Option(help="Shards of relaxed crystals.")],
    stability: Annotated[Path, typer.Option(help="Stability by the potential.")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Write DFT input folders for the selected crystals; --out is the manifest.parquet."""
    from flowllm.stages import dft_inputs as stage

    given = _settings("dft_inputs", settings, config, log_path)
    stage.run(given, relaxed=relaxed, stability=stability, out=out)


@app.command("dft_collect")
def dft_collect(
    manifest: Annotated[Path, typer.Option(help="manifest.parquet of dft_inputs.")],
    out: Out,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Read the DFT runs that have finished, and say which have not."""
    from flowllm.stages import dft_collect as stage

    stage.run(_settings("dft_collect", settings, config, log_path), manifest=manifest, out=out)


@app.command()
def fingerprints(
    crystals: Annotated[list[Path], typer.Option(help="The test split, or generated shards.")],
    out: Out,
    workers: Workers = 1,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Compute the fingerprints that coverage is measured with."""
    from flowllm.stages import fingerprints as stage

    given = _settings("fingerprints", settings, config, log_path)
    stage.run(given, crystals=crystals, out=out, workers=workers)


@app.command()
def metrics(
    base: Annotated[list[Path], typer.Option(help="Shards of base crystals.")],
    generated: Annotated[list[Path], typer.Option(help="Shards of generated crystals.")],
    relaxed: Annotated[list[Path], typer.Option(help="Relaxed shards, or DFT's file.")],
    stability: Annotated[Path, typer.Option(help="Stability of the same energies.")],
    fingerprints: Annotated[Path, typer.Option(help="Fingerprints of the generated crystals.")],
    test_fingerprints: Annotated[Path, typer.Option(help="Fingerprints of the test split.")],
    crystals: Annotated[Path, typer.Option(help="Folder of the three splits.")],
    out: Out,
    workers: Workers = 1,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Compute every metric of one method; --out is {method}.json, flags lie in .parquet."""
    from flowllm.stages import metrics as stage

    stage.run(
        _settings("metrics", settings, config, log_path),
        base=base,
        generated=generated,
        relaxed=relaxed,
        stability=stability,
        fingerprints=fingerprints,
        test_fingerprints=test_fingerprints,
        crystals=crystals,
        out=out,
        workers=workers,
    )


@app.command("match_csp")
def match_csp(
    base: Annotated[list[Path], typer.Option(help="Shards of sample_csp.")],
    generated: Annotated[list[Path], typer.Option(help="Shards of refine.")],
    crystals: Annotated[Path, typer.Option(help="crystals/test.parquet")],
    out: Out,
    workers: Workers = 1,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Compare predicted crystals with the test split's; --out is {method}.json."""
    from flowllm.stages import match_csp as stage

    given = _settings("match_csp", settings, config, log_path)
    stage.run(given, base=base, generated=generated, crystals=crystals, out=out, workers=workers)


@app.command()
def report(
    metrics: Annotated[list[Path], typer.Option(help="metrics/*/{method}.json, one a row.")],
    run_dir: Annotated[Path, typer.Option(help="Folder of the whole run.")],
    out: Out,
    csp: Annotated[list[Path] | None, typer.Option(help="csp/{method}.json, one a row.")] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(help="FOLDER=COUNT, e.g. pairs/train=400; without, all that are there."),
    ] = None,
    settings: Settings = None,
    config: Configs = None,
    log_path: Log = None,
) -> None:
    """Make the tables, the figures and the HTML page; --out is index.html."""
    from flowllm.report.training_history import shard_counts
    from flowllm.stages import report as stage

    given = _settings("report", settings, config, log_path)
    counts = shard_counts(shards or [])
    stage.run(given, metrics=metrics, csp=csp or [], run_dir=run_dir, out=out, shards=counts)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A Parquet file of the pipeline.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to show.")] = 3,
    cif: Annotated[
        str | None, typer.Option("--cif", help="Print this id's crystal as CIF.")
    ] = None,
) -> None:
    """Show a file's schema, origin, counts and a few rows, or one of its crystals as CIF."""
    from flowllm.commands.inspect import cif_of, describe

    if cif is not None:
        typer.echo(cif_of(file, cif), nl=False)
    else:
        typer.echo("\n".join(describe(file, rows)))


class Target(StrEnum):
    """Targets of the workflow."""

    all = "all"
    all_dft = "all_dft"


@app.command()
def estimate(
    config: Configs = None,
    target: Annotated[Target, typer.Option(help="all_dft: with DFT energies.")] = Target.all,
    from_run: Annotated[
        Path | None,
        typer.Option(help="Folder of an earlier run, to take figures from its records."),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="YAML file of figures; goes before --from-run.")
    ] = None,
) -> None:
    """Print jobs, files, disk, GPU- and CPU-hours of a configuration, before they are paid."""
    from flowllm.commands import estimate
    from flowllm.commands.costs import ItemCost, costs_of_run, read_costs

    crystals: dict[str, int] = {}
    known: dict[str, ItemCost] = {}
    if from_run is not None:
        known, crystals = costs_of_run(from_run)
    if costs is not None:
        known |= read_costs(costs)
    loaded = load_config(config or [Path("config.yaml")])
    # MP-20's sizes are known; of other data the run's records tell.
    crystals |= estimate.split_sizes(loaded)
    typer.echo(
        "\n".join(estimate.describe(estimate.estimate(loaded, known, target.value, crystals)))
    )


@app.command()
def check(
    config: Configs = None,
    whole: Annotated[
        str | None, typer.Option("--whole", help="The whole configuration, as JSON.")
    ] = None,
    target: Annotated[Target, typer.Option(help="all_dft: with DFT energies.")] = Target.all,
    stage: Annotated[
        list[str] | None, typer.Option(help="A stage that is to run; repeat for more. [all]")
    ] = None,
    packages: Annotated[
        bool, typer.Option(help="Check that packages are installed in this environment.")
    ] = True,
) -> None:
    """Check configuration, data, base model and packages before anything expensive starts."""
    from flowllm.commands import check as checks

    setup_logging(None)
    loaded = check_config(json.loads(whole)) if whole else load_config(config or [DEFAULT])
    found = checks.check(
        loaded,
        target=target.value,
        stages=stage or checks.ALL_STAGES,
        packages=packages,
    )
    for one in found:
        typer.echo(one.line())
    if failed := checks.failures(found):
        problems = "".join(f"\n  {one.subject}: {one.said}" for one in failed)
        raise FlowllmError(f"{len(failed)} of {len(found)} checks failed:{problems}")


class ExportFormat(StrEnum):
    """Formats of `flowllm export`."""

    cif = "cif"
    csv = "csv"
    extxyz = "extxyz"


@app.command()
def export(
    files: Annotated[list[Path], typer.Argument(help="Tables of crystals, e.g. relaxed shards.")],
    out: Out,
    form: Annotated[ExportFormat, typer.Option("--format", help="Of --out; cif: a new folder.")],
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many crystals.")] = None,
) -> None:
    """Write crystals as a CIF folder, CSV or extended XYZ, e.g. for LeMat-GenBench."""
    from flowllm.commands.export import export as write

    setup_logging(None)
    write(files, out, form.value, limit)


@app.command()
def generate(
    model: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    out: Out,
    formula: Annotated[str | None, typer.Option(help="Of the cell, e.g. Na4Cl4.")] = None,
    elements: Annotated[str | None, typer.Option(help="E.g. Na,Cl.")] = None,
    formation_energy_per_atom: Annotated[float | None, typer.Option(help="eV.")] = None,
    band_gap: Annotated[float | None, typer.Option(help="eV.")] = None,
    e_above_hull: Annotated[float | None, typer.Option(help="eV per atom.")] = None,
    space_group_number: Annotated[int | None, typer.Option(min=1, max=230)] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="CSV file, a column for each of the conditions above.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Crystals for each wish.")] = 1,
    gpus: Gpus = 0,
    row: RowName = None,
    config: Configs = None,
) -> None:
    """Sample crystals on request: give conditions, a file of them, or none."""
    from flowllm.commands.generate import generate as draw
    from flowllm.commands.generate import read_conditions

    configs = config or [Path("config.yaml")]
    given = _settings("sample_base", None, configs, None, row or load_config(configs).bases[0].name)
    wish = {
        "formula": formula,
        "elements": elements,
        "formation_energy_per_atom": formation_energy_per_atom,
        "band_gap": band_gap,
        "e_above_hull": e_above_hull,
        "space_group_number": space_group_number,
    }
    words = {name: str(value) for name, value in wish.items() if value is not None}
    if conditions is not None and words:
        raise FlowllmError("give conditions either as options or as a file, not both")
    asked = read_conditions(conditions) if conditions else [words]
    draw(given, model=model, asked=asked, count=count, out=out, gpus=gpus)


@app.command()
def infill(
    model: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    cif: Annotated[Path, typer.Option(help="The crystal.")],
    hidden: Annotated[str, typer.Option(help="Symbol of the element to hide, e.g. Cl.")],
    first: Annotated[int, typer.Option(min=1, help="Print the so many likeliest.")] = 5,
    config: Configs = None,
) -> None:
    """Hide one element of a crystal and print which the model takes it for."""
    from flowllm.commands.infill import infill as chances_of

    setup_logging(None)
    loaded = load_config(config or [Path("config.yaml")])
    chances = chances_of(loaded, model=model, cif=cif, hidden=hidden)
    for symbol, chance in list(chances.items())[:first]:
        typer.echo(f"{symbol:2} {chance:.3f}")


def main() -> None:
    """Run the command; what the user can mend is printed without a traceback."""
    stop_at_once_on_sigterm()
    try:
        app()
    except Stopped as stopped:
        log.warning("%s", stopped.said)
        raise
    except Exception as error:
        if not log.handlers:
            setup_logging(None)
        if isinstance(error, FlowllmError):
            log.error("%s", error)
            sys.exit(1)
        if isinstance(error, OSError) and is_refusal(error):
            log.error("%s", explain(error))
            sys.exit(1)
        log.exception("a defect of FlowLLM, please report it with this traceback")
        sys.exit(2)


if __name__ == "__main__":
    main()
