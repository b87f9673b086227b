"""The radix tree under both indexes: where labels are cut and joined, and that nothing stays behind."""

from __future__ import annotations

from gateway.broker.trie import LevelTrie, Node


def shape(node: Node[int]) -> dict[str, object]:
    """The tree as nested dicts: label -> (value, what lies below)."""
    return {
        child.label: (child.value, shape(child)) if child.children else child.value
        for child in (node.children or {}).values()
    }


def made(*texts: str) -> LevelTrie[int]:
    trie: LevelTrie[int] = LevelTrie()
    for number, text in enumerate(texts, 1):
        trie.make(text).value = number
    return trie


def test_a_lone_key_is_one_label() -> None:
    """However many levels it has."""
    assert shape(made("a/b/c").root) == {"a/b/c/": 1}
    assert shape(made("//").root) == {"///": 1}


def test_a_label_is_cut_where_keys_part() -> None:
    """Between levels only, not inside a common beginning of two level names."""
    assert shape(made("a/bcd/x", "a/bce/x").root) == {"a/": (None, {"bcd/x/": 1, "bce/x/": 2})}
    assert shape(made("a/b/c/d", "a/b/e").root) == {"a/b/": (None, {"c/d/": 1, "e/": 2})}
    assert shape(made("a", "ab", "abc").root) == {"a/": 1, "ab/": 2, "abc/": 3}


def test_a_key_inside_another_gets_a_node_of_its_own() -> None:
    """Whichever came first."""
    expected = {"a/": (1, {"b/c/": 2})}
    assert shape(made("a", "a/b/c").root) == expected
    trie = made("x", "a/b/c", "a")
    assert shape(trie.root) == {"x/": 1, "a/": (3, {"b/c/": 2})}


def test_making_a_key_again_gives_its_node() -> None:
    """Also one that only joined others before."""
    trie = made("a/b", "a/c")
    assert trie.make("a/b").value == 1
    joint = trie.make("a")
    assert joint.value is None
    joint.value = 3
    assert shape(trie.root) == {"a/": (3, {"b/": 1, "c/": 2})}
    assert shape(made("a/b/c", "a/b/d", "a/e").root) == {"a/": (None, {"b/": (None, {"c/": 1, "d/": 2}), "e/": 3})}


def test_a_key_is_found_exactly() -> None:
    """Not its beginnings, not its ends, not what runs beside it."""
    trie = made("a/b/c", "a/b/d", "x")
    found = trie.find("a/b/c")
    assert found is not None
    assert found.value == 1
    joint = trie.find("a/b")
    assert joint is not None
    assert joint.value is None
    for text in ("a", "a/b/c/d", "a/b/e", "a/c", "b", "a/b/", "x/y", "xx", "", "a/b/cc"):
        assert trie.find(text) is None


def test_discarding_a_leaf_joins_what_it_kept_apart() -> None:
    """The node above, when it has no value and one child left, becomes one label with it."""
    trie = made("a/b/c", "a/b/d")
    trie.discard("a/b/c")
    assert shape(trie.root) == {"a/b/d/": 2}
    assert trie.find("a/b/d") is not None


def test_discarding_a_leaf_keeps_a_node_that_has_its_own_reason() -> None:
    """A value or two more children."""
    trie = made("a", "a/b")
    trie.discard("a/b")
    assert shape(trie.root) == {"a/": 1}
    trie = made("a/b", "a/c", "a/d")
    trie.discard("a/c")
    assert shape(trie.root) == {"a/": (None, {"b/": 1, "d/": 3})}
    trie = made("a", "a/b", "a/c")
    trie.discard("a/c")
    assert shape(trie.root) == {"a/": (1, {"b/": 2})}


def test_discarding_an_inner_key_joins_it_with_its_only_child() -> None:
    """Or leaves it as a joint of several."""
    trie = made("a", "a/b/c")
    trie.discard("a")
    assert shape(trie.root) == {"a/b/c/": 2}
    trie = made("a", "a/b", "a/c")
    trie.discard("a")
    assert shape(trie.root) == {"a/": (None, {"b/": 2, "c/": 3})}
    trie.discard("a/b")
    assert shape(trie.root) == {"a/c/": 3}


def test_joined_nodes_keep_their_children() -> None:
    """A subtree moves up as a whole."""
    trie = made("a/b", "a/c/d", "a/c/e")
    trie.discard("a/b")
    assert shape(trie.root) == {"a/c/": (None, {"d/": 2, "e/": 3})}
    assert trie.find("a/c/e") is not None


def test_the_root_is_never_joined() -> None:
    """It has no label, with one child as with none."""
    trie = made("a", "b")
    trie.discard("a")
    assert shape(trie.root) == {"b/": 2}
    assert trie.root.label == ""
    trie.discard("b")
    assert trie.root.children is None


def test_discarding_what_is_not_there_changes_nothing() -> None:
    """Beginnings, continuations and neighbours of a key are not the key."""
    trie = made("a/b", "a/c/d")
    before = shape(trie.root)
    for text in ("a/c", "a/b/c", "b", "", "a/d", "a/cc"):
        trie.discard(text)
    assert shape(trie.root) == before


def test_a_joint_can_be_discarded_without_harm() -> None:
    """It has no value; its children stay."""
    trie = made("a/b", "a/c")
    trie.discard("a")
    assert shape(trie.root) == {"a/": (None, {"b/": 1, "c/": 2})}


def test_nodes_have_no_dict_of_their_own() -> None:
    """They are counted in tens of thousands on a small machine."""
    trie = made("a")
    assert not hasattr(trie, "__dict__")
    assert not hasattr(trie.make("a"), "__dict__")
    assert trie.make("a").children is None
