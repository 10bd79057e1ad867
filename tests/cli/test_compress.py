"""`moesaic compress`: what it prints, how it is interrupted, how it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Running, call_cli, run_cli, start_cli

LONG = ("--bits", 2.5, "--quantizer", "hqq")


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def journal_has(out: Path, lines: int) -> Callable[[], bool]:
    """Whether the journal of the work folder has that many lines."""
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    return lambda: journal.exists() and journal.read_bytes().count(b"\n") >= lines


def wait_for_unit(process: Running, out: Path, units: int) -> None:
    """Until that many units are finished, the process being at work on the next."""
    process.wait_for(journal_has(out, 1 + units))


def test_the_report_for_people(mixtral: Path, tmp_path: Path) -> None:
    """The summary says method, which router norm was used, budget and size; nothing goes to standard error."""
    command = ("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5)
    result = run_cli(*command, "--rule", "router_norm+max_var")
    assert result.code == 0
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == f"{tmp_path / 'out'}: router_norm+max_var, three_level 1/2/3"
    assert lines[1] == "  router norm   final norm (initial router not given)"
    assert "2.500 a weight of the experts (asked for 2.5)" in result.out
    assert len(lines) == 6
    result = run_cli(*command, "--overwrite")
    assert result.out.splitlines()[0].startswith(f"{tmp_path / 'out'}: alpha_tail, global")
    assert "router norm" not in result.out


def test_the_router_norm_change_is_reported(mixtral: Path, tmp_path: Path) -> None:
    """With --initial the output says that the change of the norm was used."""
    arguments = ("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, "--initial", mixtral)
    result = run_cli(*arguments, "--rule", "router_norm+max_var")
    assert "change (final minus initial norm)" in result.out
    scores = json.loads((tmp_path / "out" / "moesaic.json").read_text())["scores"]
    assert all(change == 0 for change in scores["details"]["parts"]["router_norm"]["model.layers.0.mlp.experts"])


def test_json_is_one_object(mixtral: Path, tmp_path: Path) -> None:
    """--json prints exactly one object on standard output, and nothing on standard error."""
    result = run_cli("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, "--json")
    assert result.err == ""
    assert result.out.count("\n") == 1
    summary = json.loads(result.out)
    assert summary["code_bits"] == summary["requested_bits"] == 2.5
    assert summary["stored_bpw"] == 8 * summary["expert_bytes"] / summary["expert_weights"]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != "moesaic.json")
    assert summary["total_bytes"] in (on_disk, on_disk + (tmp_path / "out" / "moesaic.json").stat().st_size)


def test_quiet_is_silent(mixtral: Path, tmp_path: Path) -> None:
    """--quiet prints nothing at all."""
    result = run_cli("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_the_bar_is_for_terminals(quiet: bool, mixtral: Path, tmp_path: Path) -> None:
    """On a terminal there is a progress bar with the time that remains, unless --quiet is given."""
    master, slave = pty.openpty()
    more = ("--quiet",) if quiet else ()
    process = start_cli("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, *more, terminal=os.ttyname(slave))
    assert process.finish().code == 0
    os.set_blocking(master, False)
    raw = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(master, 1 << 16):
            raw += part
    shown = raw.decode()
    os.close(master)
    os.close(slave)
    assert ("pack" in shown and "left" in shown and "%" in shown) == (not quiet)
    assert not (quiet and shown)


def test_interrupted_and_repeated(long_checkpoint: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, a word on how to go on, no output; repeated, the bytes are the same."""
    out = tmp_path / "out"
    process = start_cli("compress", long_checkpoint, "-o", out, *LONG)
    wait_for_unit(process, out, 2)
    process.send(signal.SIGINT)
    result = process.finish()
    assert result.code == 130
    kept = f"the finished part is in {out}.partial"
    assert result.err == f"interrupted; {kept}, and the same command goes on from there\n"
    assert result.out == ""
    assert not out.exists()
    assert journal_has(out, 3)()

    assert run_cli("compress", long_checkpoint, "-o", out, *LONG).code == 0
    assert files_of(out) == files_of(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("units", [0, 1, 4])
def test_killed_and_repeated(units: int, long_checkpoint: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed at any point and repeated with other threads, the bytes are the same, and the work folder is gone."""
    out = tmp_path / "out"
    process = start_cli("compress", long_checkpoint, "-o", out, *LONG, "--threads", 1)
    wait_for_unit(process, out, units)
    process.send(signal.SIGKILL)
    assert process.finish().code == -signal.SIGKILL
    assert not out.exists()
    again = start_cli("compress", long_checkpoint, "-o", out, *LONG, "--threads", 2)
    assert again.finish().code == 0
    assert files_of(out) == files_of(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def undisturbed(long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long checkpoint, compressed in one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run_cli("compress", long_checkpoint, "-o", out, *LONG, "--threads", 2).code == 0
    return out


def test_torn_files_of_a_killed_run(long_checkpoint: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Drafts and a torn journal line, which a kill can leave, do not get into the result."""
    out = tmp_path / "out"
    process = start_cli("compress", long_checkpoint, "-o", out, *LONG)
    wait_for_unit(process, out, 2)
    process.send(signal.SIGKILL)
    process.finish()
    work = out.with_name("out.partial")
    with (work / "journal.jsonl").open("a") as journal:
        journal.write('{"unit": "model.layers.3.mlp.exp')
    for name in ("moesaic.json.draft", "config.json.draft", "model.safetensors.index.json.draft"):
        (work / "out" / name).write_text('{"torn')
    assert run_cli("compress", long_checkpoint, "-o", out, *LONG).code == 0
    assert files_of(out) == files_of(undisturbed)


@pytest.mark.parametrize("limit", [1000, 100_000])
def test_no_room_to_go_on(limit: int, long_checkpoint: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A run that finds no room when it goes on keeps what an earlier one finished."""
    out = tmp_path / "out"
    process = start_cli("compress", long_checkpoint, "-o", out, *LONG)
    wait_for_unit(process, out, 2)
    process.send(signal.SIGKILL)
    process.finish()
    result = run_cli("compress", long_checkpoint, "-o", out, *LONG, file_bytes=limit)
    assert result.code == 1
    assert "no room" in result.err
    assert not out.exists()
    assert journal_has(out, 3)()
    assert run_cli("compress", long_checkpoint, "-o", out, *LONG).code == 0
    assert files_of(out) == files_of(undisturbed)


def test_work_of_another_command_is_kept(long_checkpoint: Path, tmp_path: Path) -> None:
    """An unfinished run with other options is refused with what changed; --overwrite discards it."""
    out = tmp_path / "out"
    process = start_cli("compress", long_checkpoint, "-o", out, *LONG)
    wait_for_unit(process, out, 1)
    process.send(signal.SIGSTOP)  # or it would be through before the second one has started
    second = run_cli("compress", long_checkpoint, "-o", out, "--bits", 2)
    assert second.code == 1
    assert "another process is writing this output" in second.err
    process.send(signal.SIGKILL)
    process.finish()
    before = files_of(out.with_name("out.partial"))
    other = run_cli("compress", long_checkpoint, "-o", out, "--bits", 2, "--quantizer", "hqq", "--group-size", 32)
    assert other.code == 1
    assert other.err.startswith(f"error: {out}.partial holds an unfinished run with other settings (changed: ")
    for name in ("options.bits", "options.group_size"):
        assert name in other.err
    assert "options.quantizer" not in other.err
    assert files_of(out.with_name("out.partial")) == before
    assert run_cli("compress", long_checkpoint, "-o", out, "--bits", 1, "--overwrite").code == 0
    assert json.loads((out / "moesaic.json").read_text())["code_bits"] == 1
    assert not out.with_name("out.partial").exists()


@pytest.mark.parametrize("options", [("--quantizer", "rtn"), ("--quantizer", "hqq", "--symmetric")])
def test_threads_and_repetition_change_nothing(options: tuple[str, ...], mixtral: Path, tmp_path: Path) -> None:
    """The same command twice, with one thread and with two, gives byte-identical folders, whatever their names."""
    results = []
    for name, threads in (("one", 1), ("again", 1), ("two", 2)):
        arguments = ("--bits", 2.3, "--shard-size", 0.001, "--threads", threads, *options)
        assert run_cli("compress", mixtral, "-o", tmp_path / name, *arguments).code == 0
        results.append(files_of(tmp_path / name))
    assert results[0] == results[1] == results[2]


def test_an_edited_plan(mixtral: Path, tmp_path: Path) -> None:
    """Scores, a plan from them, an edit of the plan by hand and compression with it fit together."""
    scores, plan = tmp_path / "scores.json", tmp_path / "plan.json"
    assert run_cli("score", mixtral, "-o", scores).code == 0
    assert run_cli("allocate", scores, "--model", mixtral, "--bits", 2.5, "-o", plan).code == 0
    edited = json.loads(plan.read_text())
    edited["layers"]["model.layers.0.mlp.experts"] = "16 8 4 3 2 1 1 1"
    edited["requested_bits"] = None
    plan.write_text(json.dumps(edited))
    assert run_cli("compress", mixtral, "-o", tmp_path / "out", "--plan", plan).code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["experts"]["model.layers.0.mlp.experts"]["down"] == "16 8 4 3 2 1 1 1"


def test_a_size_is_kept_and_told(mixtral: Path, tmp_path: Path) -> None:
    """`--size` bounds the folder, and the summary says what was asked for and what was reached."""
    out = tmp_path / "out"
    result = call_cli("compress", mixtral, "-o", out, "--size", "150kB")
    assert result.code == 0
    assert "(asked for at most 150.0 kB)" in result.out
    found = json.loads(call_cli("compress", mixtral, "-o", tmp_path / "b", "--bpw", "4", "--json").out)
    assert found["requested"] == {"bpw": 4.0}
    assert found["stored_bpw"] <= 4
    assert sum(path.stat().st_size for path in out.iterdir()) <= 150_000
    assert call_cli("compress", mixtral, "-o", tmp_path / "c", "--size", "150").code == 2
    assert call_cli("compress", mixtral, "-o", tmp_path / "c", "--size", "1kB").code == 2
    assert not (tmp_path / "c").exists()


def test_a_recipe(mixtral: Path, tmp_path: Path) -> None:
    """Options come from the recipe unless they are given; what was used is saved, hashed, and gives the same again."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("bits: 2\ngroup-size: 32\nallocator: two_level\nlevels: [1, 3]\nsymmetric: false\n")
    first = run_cli("compress", mixtral, "-o", tmp_path / "first", "--recipe", recipe, "--bits", 2.25)
    assert (first.code, first.err) == (0, "")
    manifest = json.loads((tmp_path / "first" / "moesaic.json").read_text())
    assert manifest["options"]["bits"] == 2.25
    assert manifest["options"]["levels"] == [1, 3]
    assert (manifest["options"]["group_size"], manifest["options"]["symmetric"]) == (32, False)
    saved = tmp_path / "first" / "recipe.yaml"
    assert manifest["files"]["recipe.yaml"]["bytes"] == saved.stat().st_size
    assert run_cli("compress", mixtral, "-o", tmp_path / "second", "--recipe", saved).code == 0
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def test_files_that_a_recipe_names_lie_beside_it(mixtral: Path, tmp_path: Path) -> None:
    """A plan that the recipe names is looked for in the recipe's folder."""
    assert run_cli("score", mixtral, "-o", tmp_path / "scores.json").code == 0
    plan = tmp_path / "plan.json"
    assert run_cli("allocate", tmp_path / "scores.json", "--model", mixtral, "--bits", 2, "-o", plan).code == 0
    (tmp_path / "recipe.yaml").write_text("plan: plan.json\n")
    result = run_cli("compress", mixtral, "-o", tmp_path / "out", "--recipe", tmp_path / "recipe.yaml")
    assert result.code == 0, result.err


def test_a_recipe_with_a_wrong_name(mixtral: Path, tmp_path: Path) -> None:
    """An option that is not known is answered with the nearest, before anything is read."""
    (tmp_path / "mine.yaml").write_text("quantiser: rtn\n")
    result = run_cli("compress", mixtral, "-o", tmp_path / "out", "--recipe", tmp_path / "mine.yaml", "--bits", 2)
    assert result.code == 2
    assert "did you mean 'quantizer'" in result.err


def test_verbose_says_what_is_done(mixtral: Path, tmp_path: Path) -> None:
    """-v names the stages on standard error, -vv adds the traceback of a failure."""
    result = run_cli("compress", mixtral, "-o", tmp_path / "out", "--bits", 2.5, "-v")
    assert "mixtral" in result.err
    assert "plan: alpha_tail" in result.err
    failure = run_cli("compress", tmp_path / "nowhere", "-o", tmp_path / "other", "--bits", 2.5, "-vv")
    assert "Traceback" in failure.err
