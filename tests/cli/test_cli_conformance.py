"""`dcp-ref conformance`: what it prints, writes and returns."""

import json

import pytest

from dcp_ref.cli import main
from dcp_ref.testing import SKELETONS, skeleton


def call(capsys, *arguments):
    code = main(["conformance", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", SKELETONS)
def test_a_skeleton_is_printed(capsys, name):
    code, out, _ = call(capsys, "--skeleton", name)
    assert code == 0 and out == skeleton(name) and "class MyCache" in out


def test_a_module_in_this_directory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_new_cache.py").write_text(skeleton("numpy"))
    code, out, err = call(capsys, "a_new_cache:MyCache", "--level", 2, "--examples", 20)
    assert code == 0 and err == "" and out.splitlines()[-1].startswith("MyCache conforms: ")
    (tmp_path / "a_worse_cache.py").write_text(skeleton("numpy").replace("~(s > self", "~(s >= self"))
    code, out, err = call(capsys, "a_worse_cache:MyCache", "--level", 2, "--examples", 20, "--first", "--json")
    assert code == 1 and err.endswith("MyCache does not conform: ties_drop\n")
    fields = json.loads(out)
    assert not fields["conforms"] and fields["results"][-1]["check"] == "ties_drop"
    assert (tmp_path / "conformance-failures" / "ties_drop.py").exists()


def test_cases_of_which_no_answer_is_there(capsys, tmp_path):
    code, _, err = call(capsys, "--export", tmp_path / "cases", "--examples", 1)
    assert code == 0 and "written: 20 cases" in err
    code, out, err = call(capsys, "--import", tmp_path / "cases")
    assert code == 1 and "does not conform: self_stays, " in err and "there is neither" in out


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give a class, package.module:Class, or one of --skeleton, --export and --import"),
    (["a:B", "--export", "x"], "give a class"), (["mine"], "mine: a class is named as package.module:Class"),
    (["no_such_module:MyCache"], "cannot be imported: ModuleNotFoundError"), (["json:MyCache"], "AttributeError"),
    (["json:JSONDecoder"], "offers nothing to check"), (["a:B", "--examples", "0"], "--examples must be 1 or more")])
def test_what_cannot_be_checked(capsys, arguments, message):
    code, _, err = call(capsys, *arguments)
    assert code == 2 and message in err
