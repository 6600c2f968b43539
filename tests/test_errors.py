"""What people read of an error, wherever they read it."""

import io

from brainseg_jax.errors import InputError, exit_code


def test_output_in_ascii_is_no_reason_to_stop(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def command():
        print("1 × cpu")
        raise InputError("Müller.nii: no such file")

    assert exit_code(command) == 2
    for stream, text in ((out, b"1 \\xd7 cpu\n"), (err, b"error: M\\xfcller.nii: no such file\n")):
        stream.flush()
        assert stream.buffer.getvalue() == text
