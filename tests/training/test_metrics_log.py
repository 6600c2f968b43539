"""What a run says: lines that survive a kill, none twice after a restart, words fit for a terminal or a file."""

import io
import json
import struct

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.training import metrics_log
from brainseg_jax.training.metrics_log import Writer, read_metrics


class Out(io.StringIO):
    """A text file in memory, with all that a text file has."""

    name, mode, buffer = "out", "w", None


def test_a_line_for_each_reading(tmp_path):
    writer = Writer(tmp_path, 10, 0, Out())
    writer.scalars(1, "train", {"loss": 0.5})
    writer.scalars(2, "eval", {"loss": 0.25})
    rows = read_metrics(tmp_path / "metrics.jsonl")  # at once: nothing waits in a buffer
    writer.close()
    assert [(row["step"], row["kind"], row["loss"]) for row in rows] == [(1, "train", 0.5), (2, "eval", 0.25)]
    assert all(row["time"] > 1.7e9 for row in rows)
    assert list((tmp_path / "tb").glob("events*"))


def test_an_unfinished_last_line_is_left_out_and_then_written_over(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "kind": "train", "loss": 0.5}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1, "kind": "train", "loss": 0.5}]
    writer = Writer(tmp_path, 10, 1, Out())
    writer.scalars(2, "train", {"loss": 0.3})
    writer.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"[]", b"3", b"{}", b'{"step": 2, "kjnd": "eval"}', b'{"step": 2, "lo'])
def test_a_line_that_is_damaged_is_left_out_at_the_end_and_else_named(tmp_path, damage):
    file, row = tmp_path / "metrics.jsonl", b'{"step": 1, "kind": "train", "loss": 0.5}\n'
    file.write_bytes(row + damage)
    assert read_metrics(file) == [{"step": 1, "kind": "train", "loss": 0.5}]
    file.write_bytes(row + damage + b"\n" + row)
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is damaged; bring it back"):
        read_metrics(file)


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "kind": "train"}) + "\n" for step in range(1, 6)))
    Writer(tmp_path, 10, 3, Out()).close()
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "0 min 05 s"), (125.0, "2 min 05 s"), (3725.0, "1 h 02 min")])
def test_not_on_a_terminal_progress_is_plain_lines(tmp_path, seconds, text):
    out = Out()
    writer = Writer(tmp_path, 10, 0, out)
    writer.progress(3, "loss 0.5  [b]", seconds)
    writer.close()
    assert out.getvalue() == f"step 3  loss 0.5  [b]  {text} left\n"


def test_long_lines_are_not_wrapped_off_a_terminal(tmp_path):
    out = Out()
    writer = Writer(tmp_path, 10, 0, out)
    writer.say("word " * 60 + "/a/path/[1]")
    writer.close()
    assert out.getvalue() == "word " * 60 + "/a/path/[1]\n"


def test_on_a_terminal_there_is_a_live_line(tmp_path):
    class Terminal(Out):
        def isatty(self):
            return True

    out = Terminal()
    writer = Writer(tmp_path, 10, 0, out)
    writer.progress(3, "loss 0.5", 60.0)
    writer.close()
    assert "step 3/10" in out.getvalue() and "\x1b[" in out.getvalue()


def test_works_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "Event", None)
    writer = Writer(tmp_path, 10, 0, Out())
    writer.scalars(1, "train", {"loss": 0.5})
    writer.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1 and not (tmp_path / "tb").exists()


def records(file):
    """Events of a file, whose checksums are right, by the reading of the format's description."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def checked(content, checksum):
        value = crc32c(content)
        assert struct.unpack("<I", checksum)[0] == ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32
        return content

    stream, events = io.BytesIO(file.read_bytes()), []
    while length := stream.read(8):
        size = struct.unpack("<Q", checked(length, stream.read(4)))[0]
        events.append(Event.FromString(checked(stream.read(size), stream.read(4))))
    return events


def test_tensorboard_is_told_the_same_and_what_an_interrupted_run_told_is_hidden(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = Writer(tmp_path, 10, 3, Out())
    writer.scalars(4, "train", {"loss": 0.5, "dice/Left-Thalamus": 0.25})
    writer.close()
    (file,) = (tmp_path / "tb").iterdir()
    version, start, *told = records(file)
    assert file.name.startswith("events.out.tfevents.") and version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, start.session_log.START)
    values = {event.summary.value[0].tag: (event.step, event.summary.value[0].simple_value) for event in told}
    assert values == {"train/loss": (4, 0.5), "train/dice/Left-Thalamus": (4, 0.25)}


@pytest.mark.parametrize("name", ["metrics.jsonl", "tb"])
def test_a_full_disk_names_the_file_and_closing_adds_nothing(tmp_path, name):
    writer = Writer(tmp_path, 10, 0, Out())
    file = writer.file if name == "metrics.jsonl" else writer.board.file
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as fault:
        writer.scalars(1, "train", {"loss": 0.5})
    assert fault.value.filename == str(file)
    writer.close()


def test_other_processes_say_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log.jax, "process_index", lambda: 1)
    out = Out()
    writer = Writer(tmp_path, 10, 0, out)
    writer.say("hello")
    writer.scalars(1, "train", {"loss": 0.5})
    writer.progress(1, "", 1.0)
    writer.close()
    assert out.getvalue() == "" and not list(tmp_path.iterdir())


def test_says_to_where_stdout_is_when_it_is_made(tmp_path, capsys):
    """Not to where it was when the module was imported: output can be redirected."""
    writer = Writer(tmp_path, 10, 0)
    writer.say("hello")
    writer.close()
    assert capsys.readouterr().out == "hello\n"
