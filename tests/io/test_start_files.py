"""The files of the network that a flow continues from, as the workflow and the stage list them."""

from flowllm.io.start_files import flow_folder, flow_start_files


def test_a_folder_of_networks_has_one_per_name_and_a_network_is_that_of_any_name(tmp_path):
    for name in ("llm", "types"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").touch()
    (tmp_path / "llm" / ".snakemake_timestamp").touch()
    assert flow_folder(str(tmp_path), "types") == tmp_path / "types"
    assert flow_folder(str(tmp_path / "llm"), "types") == tmp_path / "llm"
    for start in (tmp_path, tmp_path / "llm"):
        assert flow_start_files(str(start), "llm") == [tmp_path / "llm" / "model.json"]
    assert flow_start_files(None, "llm") == []
    assert flow_start_files(str(tmp_path), "none") == []
