"""A few hundred damaged NIfTI files in every run (`python -m tests.fuzz_nifti` makes thousands), and the judge."""

import numpy as np
import pytest

from asegnet_fast.data import header
from tests import fuzz_nifti
from tests.examples import examples


def test_damaged_files_are_refused_in_one_line_or_read_right():
    files = examples(200, 10000)
    counts, complaints = fuzz_nifti.run(files, seed=20)
    assert not complaints, "\n".join(complaints)
    assert sum(counts.values()) == files
    refused, read = (
        sum(n for (_, v), n in counts.items() if v == verdict) for verdict in ("refused", "read")
    )
    assert refused > files / 4 and read > files / 4, counts


@pytest.mark.parametrize("fault", ["another error", "wrong values", "memory", "no name"])
def test_the_judge_sees_faults(monkeypatch, fault):
    right = header.NiftiFile.chunks

    def broken(self, planes):
        if fault == "another error":
            raise KeyError("surprise")
        if fault == "no name":
            raise header.DataError("something is wrong")
        if fault == "memory":
            np.zeros(fuzz_nifti.MEMORY + 2**28, np.uint8)
        for start, part in right(self, planes):
            yield start, part + 1

    monkeypatch.setattr(header.NiftiFile, "chunks", broken)
    monkeypatch.setattr(fuzz_nifti, "DAMAGES", {fuzz_nifti.nothing: 1})
    counts, complaints = fuzz_nifti.run(6, seed=1)
    assert len(complaints) + counts["nothing", "refused"] == 6 and complaints, counts
