"""What several files share of the tests `test_tables`."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flowllm.crystal import Crystal, lattice_has_volume


@st.composite
def crystals(draw) -> Crystal:
    numbers = draw(st.lists(st.integers(1, 118), min_size=1, max_size=20))
    coords = draw(hnp.arrays(np.float32, (len(numbers), 3), elements=st.floats(-2, 2, width=32)))
    lengths = draw(hnp.arrays(np.float32, 3, elements=st.floats(0.5, 100, width=32)))
    angles = draw(
        hnp.arrays(np.float32, 3, elements=st.floats(60, 115, width=32)).filter(lattice_has_volume)
    )
    return Crystal.from_arrays(numbers, coords, lengths, angles)
