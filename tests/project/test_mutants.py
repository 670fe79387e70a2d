"""The list of mutants: each edit fits one place, has tests, and a name of its own."""

import mutants


def test_each_fits_one_place_and_has_tests():
    assert mutants.complaints(mutants.MUTANTS) == []


def test_an_edit_that_fits_no_longer_is_named():
    wrong = [mutants.Mutant("gone", "dcp_ref/config.py", "no such text", ""),
             mutants.Mutant("moved", "dcp_ref/nowhere.py", "import", "", ("tests/test_nothing.py",))]
    assert mutants.complaints(wrong) == [
        "gone: its text stands 0 times in dcp_ref/config.py, not once",
        "moved: its text stands 0 times in dcp_ref/nowhere.py, not once", "moved: there is no tests/test_nothing.py"]


def test_each_has_a_name_and_an_edit_of_its_own():
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
    assert all(mutant.old != mutant.new for mutant in mutants.MUTANTS)
