"""A hostfile is read as DeepSpeed reads it, and its command is put on the hosts that are left."""

from pathlib import Path

import pytest

from launch.hosts import Host, on_hosts, option, parse_hostfile, write_hostfile

HOSTS = [Host("10.0.0.1", 2), Host("10.0.0.2", 2), Host("node-3", 4)]


def test_a_hostfile_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    write_hostfile(file, HOSTS)
    assert parse_hostfile(file) == HOSTS
    file.write_text("# ours\n\n" + file.read_text().replace("\n", "  # a rack\n"))
    assert parse_hostfile(file) == HOSTS


@pytest.mark.parametrize("text", ["", "# none\n", "node\n", "node slots=two\n", "-oX slots=1\n"])
def test_what_is_no_hostfile_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    with pytest.raises(ValueError, match="cannot be read"):
        parse_hostfile(file)
    file.write_text(text)
    with pytest.raises(ValueError, match="hosts"):
        parse_hostfile(file)


@pytest.mark.parametrize("form", [["--hostfile", "F"], ["--hostfile=F"], ["-H", "F"]])
def test_a_command_goes_on_with_the_hosts_that_are_left(form: list[str], tmp_path: Path) -> None:
    """The script's own arguments stay as they are, whatever they look like."""
    file = tmp_path / "hosts"
    write_hostfile(file, HOSTS)
    launcher = [word.replace("F", str(file)) for word in form]
    own = ["train.py", "name=a", "--master_addr", "10.0.0.1", "--hostfile", "x"]
    command = ["deepspeed", "--quiet", *launcher, "--master_addr=10.0.0.1", *own]
    assert on_hosts(command, HOSTS, HOSTS) == command
    made = on_hosts(command, HOSTS, HOSTS[1:])
    assert made[-len(own) :] == own and made[:2] == command[:2]
    assert parse_hostfile(Path(str(option(made, "--hostfile", "-H")))) == HOSTS[1:]
    assert option(made, "--master_addr") == "10.0.0.2"
    assert "--force_multi" not in made and "--force_multi" in on_hosts(command, HOSTS, HOSTS[:1])
    assert option(on_hosts(command, HOSTS, HOSTS[:2]), "--master_addr") == "10.0.0.1"
    assert parse_hostfile(file) == HOSTS
