"""``rectilinear measure`` with what parts and beginnings of rows there are to ask for."""

import json


def test_several_targets_in_one_run(command, tiny_checkpoint, text_file, tmp_path):
    size = ("--text", text_file, "--max-tokens", 1024, "--seq-len", 16)
    done = command("measure", tiny_checkpoint, *size, "--target", "attention,mlp", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "out/profile.json").read_text())
    assert (written["target"], [*written["parts"]]) == ("attention", ["mlp"])
    assert written["settings"]["target"] == ["attention", "mlp"]
    assert "attentions of 3 blocks" in done.out
    assert "MLPs of 3 blocks" in done.out


def test_rows_that_begin_with_bos(command, tiny_checkpoint, text_file, tmp_path):
    """The rows' first tokens are among the moments, and apart from the others."""
    size = ("--text", text_file, "--max-tokens", 1024, "--seq-len", 16, "--bos", "row")
    done = command("measure", tiny_checkpoint, *size, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "1,024 tokens" in done.out
    assert "in rows that begin with BOS" in " ".join(done.out.split())
    written = json.loads((tmp_path / "out/profile.json").read_text())
    assert written["settings"]["bos"] == "row"
    apart = written["blocks"][0]["without_sinks"]
    assert apart["sinks_by"]["bos"] >= 64  # and where documents begin
    assert apart["tokens"] + apart["sinks"] == 1024


def test_bos_where_there_is_none(command, save_checkpoint, tiny_llama, text_file, tmp_path):
    folder = save_checkpoint(tiny_llama, "without-bos")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    done = command("measure", folder, "--text", text_file, "--seq-len", 16, "--bos", "row")
    assert done.code == 2
    assert "BOS token for --bos row, got one without; try --bos document" in done.err
