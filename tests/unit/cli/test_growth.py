"""Growth of a run through the command line: adding and removing a scheme and a task, with synthetic responses."""

from __future__ import annotations

import json

from tests.command_line import REHEARSAL, Hpcq

LARGER = (
    REHEARSAL.replace('"gsm8k"', '"gsm8k", "winogrande"').replace('"synthetic-w4a16"]', '"synthetic-w4a16", "other"]')
    + """
[[schemes.define]]
name = "other"
base = "synthetic-w4a16"
group_size = 32
"""
)


def attempts(hpcq: Hpcq) -> dict[str, dict[str, object]]:
    """Return the attempts of the run by file name."""
    folder = hpcq.folder / "runs" / "rehearsal" / "attempts"
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_a_run_grows_and_shrinks_without_computing_anything_twice(finished: Hpcq) -> None:
    """One more scheme and task was another run: now only the new requests are answered, and removing needs no job."""
    run = finished.folder / "runs" / "rehearsal"
    before = attempts(finished)
    lock, plan = ((run / name).read_bytes() for name in ("manifest.lock.toml", "plan.json"))
    done = finished("submit", finished.write(LARGER))
    assert done.code == 0, done.err
    assert "adds Llama-3.1-8B-Instruct other and winogrande. Existing results stay." in done.err
    new = [record for name, record in attempts(finished).items() if name not in before]
    assert sorted(str(record["unit"]).partition(".")[0] for record in new) == ["evaluate"] * 6 + ["merge", "quantize"]
    evaluations = [record for record in new if str(record["unit"]).startswith("evaluate")]
    requests, restored = ([int(str(one[key])) for one in evaluations] for key in ("total", "restored"))
    assert (sum(requests), sum(restored)) == (3 * 35, 2 * 25)
    document = finished("merge", "rehearsal", "--json").document
    assert (document["found"], document["missing"], document["duplicates"]) == (105, 0, 0)
    kept = run / "history" / "0001"
    assert [(kept / name).read_bytes() for name in ("manifest.lock.toml", "plan.json")] == [lock, plan]
    assert finished("resume", "rehearsal", "-O", "evaluate.shards=2").code == 0
    assert [entry.name for entry in (run / "history").iterdir()] == ["0001"]

    grown = attempts(finished)
    done = finished("submit", finished.write(REHEARSAL))
    assert "removes Llama-3.1-8B-Instruct other and winogrande." in done.err
    assert finished("status", "rehearsal", "--json").document["counts"] == {"done": 6}
    assert finished("submit", finished.write(LARGER)).code == 0
    assert {name.partition(".")[0] for name in attempts(finished).keys() - grown.keys()} == {"merge"}
    assert finished("status", "rehearsal", "--json").document["counts"] == {"done": 9}
