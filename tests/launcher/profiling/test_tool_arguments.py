"""The arguments of profilers, in every spelling."""

from __future__ import annotations

from pytest_infserver.launcher.profiling.tool_arguments import grouped, name_of, options_in, value_of


def test_grouped() -> None:
    assert grouped(["-t", "cuda", "--sample=none", "-c", "a", "b"]) == [
        ["-t", "cuda"],
        ["--sample=none"],
        ["-c", "a", "b"],
    ]
    assert grouped([]) == []


def test_names() -> None:
    groups = [["-f", "raw"], ["-fraw"], ["--format=raw"], ["--format", "raw"], ["--idle"], ["raw"]]
    assert [name_of(group) for group in groups] == ["-f", "-f", "--format", "--format", "--idle", "raw"]


def test_values() -> None:
    for words in (["-f", "raw"], ["-fraw"], ["-f=raw"], ["--format=raw"], ["--format", "raw"]):
        assert value_of(["--idle", *words, "-r", "5"], "-f", "--format") == "raw", words
    assert value_of(["--idle"], "--idle") == ""
    assert value_of(["--idle"], "-f") is None


def test_options_of_every_spelling() -> None:
    text = "\t-e, --env-var=\n\n\t   Says --this.\n\t--nvtx-domain-[include|exclude]=\n  -h, --help=[<tag>]\n"
    found = options_in(text)
    assert {"-e", "--env-var", "-h", "--help", "--nvtx-domain-include", "--nvtx-domain-exclude"} <= found
    assert "--this" not in found
