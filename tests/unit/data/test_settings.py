"""Seeds: what torch and numpy both take."""

import pytest
from pydantic import ValidationError

from quadriga.data.settings import SEED_LIMIT, Source


@pytest.mark.parametrize("seed", [-1, SEED_LIMIT, 2**65])
def test_a_seed_out_of_bounds_is_refused_with_a_sentence(seed: int) -> None:
    with pytest.raises(ValidationError, match=rf"{seed} is not a seed: .* from 0 to 2\^63 - 1"):
        Source(path="a", seed=seed)


def test_the_bounds_of_a_seed_are_in_the_schema() -> None:
    assert Source.model_json_schema()["properties"]["seed"]["minimum"] == 0
    assert Source(path="a", seed=SEED_LIMIT - 1).seed == SEED_LIMIT - 1
