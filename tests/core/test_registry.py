import pytest

from lorakit.errors import ConfigError, PluginError
from lorakit.registry import Registry, Shelf, Shelves
from tests.core.fake import make_kit, part


def test_a_shelf_is_in_order_of_name():
    shelf = Shelf("optimizer")
    for name in ("b", "c", "a"):
        shelf.add(name, name.upper(), "plugin")
    assert list(shelf.items()) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert len(shelf) == 3


def test_a_name_twice_names_both_owners_and_keeps_the_first():
    shelf = Shelf("optimizer")
    shelf.add("lion", 1, "acme")
    with pytest.raises(PluginError, match=r"'lion'.*acme and globex"):
        shelf.add("lion", 2, "globex")
    assert (shelf["lion"], shelf.owner("lion")) == (1, "acme")


def test_find_suggests_the_nearest_name_and_says_where_it_was_asked_for():
    shelf = Shelf("optimizer")
    shelf.add("adamw", 1, "acme")
    with pytest.raises(ConfigError, match=r"no optimizer 'adanw'.*run\.toml.*Did you mean 'adamw'\?.*Known: adamw"):
        shelf.find("adanw", "run.toml")
    with pytest.raises(ConfigError) as caught:
        shelf.find("zzzz")
    assert "Did you mean" not in str(caught.value)


def test_an_empty_shelf_says_that_no_plugin_brings_any():
    with pytest.raises(ConfigError, match="no installed plugin brings a family"):
        Shelf("family").find("qwen")


def test_presets_are_named_by_family_and_file(tmp_path):
    for name in ("style.toml", "character.toml", "notes.md"):
        (tmp_path / name).write_text("")
    shelves = Shelves()
    Registry(shelves, "acme").presets("fake", tmp_path)
    assert list(shelves.presets) == ["fake/character", "fake/style"]


def test_a_part_is_loaded_by_name():
    assert part("sqrt", requires=("math",)).load == "nowhere:sqrt"
    found = type(part("x"))(name="root", summary="", load="math:sqrt")
    assert found.resolve()(9) == 3


@pytest.mark.parametrize("load", ["nowhere_at_all:thing", "math:thing"])
def test_a_part_that_cannot_be_loaded_says_what_to_install(load):
    broken = type(part("x"))(name="magic", summary="", load=load, requires=("magiclib",))
    with pytest.raises(PluginError, match=rf"'magic'.*{load}.*magiclib"):
        broken.resolve()


def test_core_brings_its_own_nouns():
    shelves = make_kit().shelves
    assert set(shelves.schedulers) >= {"flowmatch"}
    assert set(shelves.quantizers) >= {"none", "int8"}
    assert set(shelves.optimizers) >= {"adamw", "adamw8bit"}
    assert shelves.schedulers.owner("flowmatch") == "lorakit"


def test_an_optimizer_that_nobody_brings_is_refused_by_the_plan(kit, asked):
    with pytest.raises(ConfigError, match=r"'adamw9bit'.*the call.*'adamw8bit'"):
        kit.plan({**asked, "optimizer": {"name": "adamw9bit"}})


def test_a_family_that_nobody_brings_is_refused(kit, asked):
    with pytest.raises(ConfigError, match=r"'fakr'.*the call.*'fake'"):
        kit.plan({**asked, "family": "fakr"})
