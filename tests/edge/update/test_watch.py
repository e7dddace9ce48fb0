"""The watch over a new version: what fails again and again is taken back."""

import time

import pytest
from build_channel import NAME, current, version
from slm_edge.edge.errors import DoesNotFitError, EngineError, InputError
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.store.store import Store
from slm_edge.edge.update.state import ENOUGH_GOOD, MOST_BAD, changing, read_state, settle, take_back
from slm_edge.edge.update.update import update
from slm_edge.edge.update.watch import watched


@pytest.fixture
def on_trial(maker):
    for number in ("1.0", "1.1"):
        maker.release(number, rehearsed=True)
        update(NAME, str(maker.site))
    return Pack.open(current())


def fail(pack):
    with pytest.raises(EngineError), watched(pack):
        raise EngineError("no numbers")


def test_a_version_that_fails_again_and_again_goes_back_by_itself(on_trial):
    for _ in range(MOST_BAD - 1):
        fail(on_trial)
    with watched(on_trial):
        pass
    for _ in range(MOST_BAD - 1):
        fail(on_trial)
    assert version() == "1.1"
    fail(on_trial)
    assert version() == "1.0"
    assert (
        "no numbers"
        in read_state(Store(), NAME).refused[on_trial.manifest and Store().version_of(on_trial.folder).digest]
    )
    assert update(NAME).state == "current"


def test_processes_that_die_of_it_count(on_trial):
    digest = Store().version_of(on_trial.folder).digest
    with changing(Store(), NAME) as state:
        # Of processes that are gone, whoever has their numbers now; and of one before the machine was restarted
        state.begun = {str(10**7 + n): time.time() for n in range(MOST_BAD - 1)} | {str(10**8): 1.0}
    with watched(on_trial):
        assert read_state(Store(), NAME).n_bad == MOST_BAD - 1
    with changing(Store(), NAME) as state:
        state.n_bad, state.begun = 0, {str(10**7 + n): time.time() for n in range(MOST_BAD)}
    with pytest.raises(EngineError, match="was taken back"), watched(on_trial):
        raise AssertionError("it is not used any more")
    assert version() == "1.0" and "died" in read_state(Store(), NAME).refused[digest]


def test_uses_at_once_are_no_failures(on_trial):
    with watched(on_trial), watched(on_trial), watched(on_trial), watched(on_trial):
        assert version() == "1.1"
    assert read_state(Store(), NAME).n_bad == 0


def test_what_users_do_wrong_counts_neither_way(on_trial):
    for error in (InputError("x"), KeyboardInterrupt(), DoesNotFitError("x")) * 3:
        with pytest.raises(type(error)), watched(on_trial):
            raise error
    state = read_state(Store(), NAME)
    assert (state.n_good, state.n_bad, state.begun) == (0, 0, {})


def test_good_uses_end_the_watch(on_trial):
    for _ in range(ENOUGH_GOOD):
        with watched(on_trial):
            pass
    ref = Store().ref(NAME)
    assert ref.trial is None and ref.current is not None and ref.previous is not None
    for _ in range(MOST_BAD + 1):
        fail(on_trial)
    assert version() == "1.1"


def test_going_back_that_was_killed_is_ended(on_trial):
    digest = Store().version_of(on_trial.folder).digest
    with changing(Store(), NAME) as state:
        state.refused[digest] = "it failed"
    settle(Store(), NAME)
    assert version() == "1.0"
    take_back(Store(), NAME, digest, "again")
    assert version() == "1.0"
