"""The mutation table fits the code: a renamed line must not leave a mutation that no longer mutates anything."""

import pytest
from mutate import ROOT, mutated
from mutations import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutation_applies_and_names_tests_that_exist(mutation):
    assert mutated(mutation) != (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        if not name:  # a whole module of tests
            assert (ROOT / file).is_file()
            continue
        assert f"def {name.split('[')[0].split('::')[-1]}(" in (ROOT / file).read_text(encoding="utf-8")
