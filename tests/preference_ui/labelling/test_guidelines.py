"""Guidelines are read again where they say something else, and only then."""

from preference_ui.labelling.guidelines import has_read
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store


def test_only_other_guidelines_are_read_again(sqlite_store: Store) -> None:
    defaults = DeskSettings()

    def read(mark: int) -> bool:
        version, settings = sqlite_store.settings()
        return has_read(sqlite_store, mark, version, settings.guidelines)

    assert not read(0)
    assert read(1)  # the defaults, which are version 0
    sqlite_store.change_settings(defaults.model_copy(update={"gold_share": 0.5}), author="root")
    assert read(1)
    assert not read(0)
    ours = defaults.model_copy(update={"guidelines": "Be kind."})
    assert sqlite_store.change_settings(ours, author="root") == 2
    assert not read(1)
    assert not read(2)
    assert read(3)
    sqlite_store.change_settings(ours.model_copy(update={"lease_minutes": 5.0}), author="root")
    assert read(3)
    assert not read(2)
    sqlite_store.change_settings(defaults, author="root")  # as at first
    assert read(1)
    assert not read(3)
