"""What several files share of the tests `test_import_samples`."""

from flowllm.config.stage_settings import StageSettings
from flowllm.stages import import_samples


def read_in(file, folder, shards=1, seed=1, **keys):
    """Run the stage for every shard; return the paths of the base and the generated ones."""
    row = {"name": "Other", "file": str(file), "shards": shards, **keys}
    given = StageSettings("import_samples", {"seed": seed, "version": 1, "external": row})
    paths = []
    for shard in range(shards):
        name = f"Other/shard-{shard:05d}.parquet"
        base, out = folder / "base" / name, folder / "generated" / name
        import_samples.run(given, shard=shard, base=base, out=out)
        paths.append((base, out))
    return tuple(zip(*paths, strict=True))
