import pytest

from elastic.errors import ConfigError
from elastic.recipes.find import RECIPES, find_recipe
from elastic.train.config import TrainConfig

OWN_RECIPE = '''
from elastic.recipes.debug import debug

def mine():
    """A run of mine."""
    return debug()

def wrong():
    return 3
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_recipes_for_a_test.py").write_text(OWN_RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])  # restored afterwards; the import adds the working directory
    return "own_recipes_for_a_test"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_returns_a_config_of_its_own_name_and_says_what_it_is(name):
    recipe = find_recipe(name)
    assert recipe().name == name
    assert f"`elastic train {name}`" in recipe.__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_returns_equal_configs(name):
    assert find_recipe(name)() == find_recipe(name)()


def test_a_function_of_the_users_own_is_found_from_the_working_directory(own_module):
    recipe = find_recipe(f"{own_module}:mine")
    assert isinstance(recipe(), TrainConfig)
    assert recipe.__doc__ == "A run of mine."


def test_a_function_that_returns_something_else_is_refused(own_module):
    with pytest.raises(ConfigError, match="returned a int"):
        find_recipe(f"{own_module}:wrong")()


@pytest.mark.parametrize("name", ["no.such.module:run", "elastic.recipes.debug:nothing", ":x"])
def test_what_cannot_be_imported_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_recipe(name)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ConfigError, match="icons, icons_demo, debug"):
        find_recipe("imagenet")
