import pytest

from vlkd_pl.errors import MissingPackageError, needs_extra


def test_a_missing_package_names_the_extra():
    with pytest.raises(MissingPackageError) as raised, needs_extra("demo"):
        import no_such_package  # noqa: F401
    assert str(raised.value) == (
        "No module named 'no_such_package': it comes with the extra demo; run pip install '.[demo]' in the checkout of "
        "vlkd_pl"
    )
    assert isinstance(raised.value, ImportError)
    assert isinstance(raised.value.__cause__, ImportError)


def test_other_errors_pass():
    with pytest.raises(KeyError), needs_extra("demo"):
        raise KeyError
