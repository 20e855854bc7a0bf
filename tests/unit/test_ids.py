"""What is no id is refused in words."""

import pytest

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.ids import uuid_text


@pytest.mark.parametrize(("what", "said"), [("run", "the id of a run"), ("approval", "the id of an approval")])
def test_what_is_no_id_is_refused_by_the_name_of_what_it_should_be(what, said):
    with pytest.raises(InvalidRequest, match=said):
        uuid_text("nope", what=what)
