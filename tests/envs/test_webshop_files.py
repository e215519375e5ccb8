"""WebShop on official files: loading, errors, goals and splits."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_trl.envs import WebShopEnv, check_env
from sdar_trl.envs.webshop.files import CHUNK, read_items, read_records
from sdar_trl.envs.webshop.samples import write_files
from sdar_trl.envs.webshop.store import load_shop


def item(asin, **fields):
    return {
        "asin": asin,
        "name": "Canvas Shoe",
        "category": "fashion",
        "query": " Canvas Shoe ",
        "product_category": "Clothing › Shoes",
        "full_description": "A shoe.",
        "small_description": ["Rubber sole."],
        "pricing": "$20.00",
        "customization_options": {
            "Size": [{"value": "8", "image": "x.jpg"}, {"value": "9"}],
            "Color": [{"value": "Red"}],
        },
        "images": ["x.jpg"],
        **fields,
    }


ITEMS = [
    item("B01"),
    item("nan", name=None),
    item("B0123456789", pricing=5),
    item("B01", name="again"),
    item("B02", pricing="$30.00 - $40.50", customization_options=None, full_description="Größe <br>™ \ud83d\udc5f"),
    item("B03", pricing=None, small_description="One text.", customization_options={"Size": None, "Color": []}),
    {name: value for name, value in item("B04").items() if name not in ("pricing", "customization_options", "images")},
    item("B05", pricing="From $1,299.00 to $2,000", query="", small_description=[], reviews=[{"text": "fine"}]),
]
INSTRUCTIONS = {
    "B01": {"attributes": ["rubber sole"], "instruction": "i want a shoe", "instruction_attributes": ["rubber sole"]},
    "B02": {"attributes": ["wide"], "instruction": "i want a wide shoe", "instruction_attributes": ["wide"]},
    "B03": {"attributes": [], "instruction": "no goal: an option without values", "instruction_attributes": ["x"]},
    "B04": {"attributes": ["soft"], "instruction": None},
}
HUMAN = {
    "B02": [
        {"instruction": "find a wide one.", "instruction_attributes": ["wide"], "instruction_options": []},
        {"instruction": "no attribute", "instruction_attributes": [], "instruction_options": []},
    ],
    "B01": [{"instruction": "a red one", "instruction_attributes": ["rubber sole"], "instruction_options": ["red"]}],
    "B09": [{"instruction": "of no product", "instruction_attributes": ["x"], "instruction_options": []}],
}


def write(folder, items=ITEMS, instructions=INSTRUCTIONS, human=HUMAN, size="_1000"):
    (folder / f"items_shuffle{size}.json").write_text(json.dumps(items))
    (folder / f"items_ins_v2{size}.json").write_text(json.dumps(instructions))
    (folder / "items_human_ins.json").write_text(json.dumps(human))
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    write_files(folder, 1000)
    return folder


# Loading


def test_products_of_official_files_are_built_by_the_originals_rules(tmp_path):
    products = load_shop(write(tmp_path)).products
    assert [product.asin for product in products] == ["B01", "B02", "B03", "B04", "B05"]
    first, second, third, fourth, fifth = products
    assert first.options == {"size": ("8", "9"), "color": ("red",)}
    assert (first.query, first.attributes, first.price_text, first.price) == (
        "canvas shoe",
        ("rubber sole",),
        "$20.0",
        20,
    )
    assert second.price_text == "$30.0 to $40.5" and second.description == "Größe <br>™ 👟" and second.options == {}
    assert (third.price_text, third.price, third.bullet_points) == ("$100.0", 100.0, ("One text.",))
    assert third.options == {"color": ()}
    assert (fourth.price_text, fourth.options, fourth.instruction) == ("$100.0", {}, None)
    assert fifth.price_text == "$1299.0 to $2000.0" and fifth.attributes == ("DUMMY_ATTR",)


def test_prices_and_limits_are_drawn_as_the_original_draws_them_after_seeding(tmp_path):
    shop = load_shop(write(tmp_path), seed=7)
    rng = random.Random(7)  # all prices of ranges, in order; then a limit for each product with an instruction
    assert shop.products[1].price == rng.uniform(30.0, 40.5)
    fifth = rng.uniform(1299.0, 2000.0)
    assert shop.products[4].price == fifth
    limits = {"B01": max(rng.sample([30.0, 40.0, 50.0, 60.0], 2))}
    above = [limit for limit in range(10, 1000, 10) if limit > shop.products[1].price][:4]
    limits["B02"] = max(rng.sample(above, 2))
    assert {goal.asin: goal.price_upper for goal in shop.goals} == limits
    assert load_shop(tmp_path, seed=8).products[1].price != shop.products[1].price


def test_synthetic_goals_are_all_combinations_in_the_shuffle_with_seed_233(tmp_path):
    goals = load_shop(write(tmp_path)).goals
    expected = [("B01", {"color": "red", "size": "8"}), ("B01", {"color": "red", "size": "9"}), ("B02", {})]
    random.Random(233).shuffle(expected)
    assert [(goal.asin, goal.options) for goal in goals] == expected
    [wide] = [goal for goal in goals if goal.asin == "B02"]
    assert wide.instruction == f"i want a wide shoe, and price lower than {wide.price_upper:.2f} dollars"
    assert wide.weight == 1.0 and sum(goal.weight for goal in goals) == 2.0
    assert list(goals.categories()) == ["fashion"] * 3
    assert goals[-1] == goals[2] and goals[:2] == [goals[0], goals[1]]
    with pytest.raises(IndexError):
        goals[3]


def test_human_goals_come_in_the_order_of_products_before_the_shuffle(tmp_path):
    goals = load_shop(write(tmp_path), human_goals=True).goals
    expected = [("B01", ("red",)), ("B02", ())]
    random.Random(233).shuffle(expected)
    assert [(goal.asin, goal.unnamed_options) for goal in goals] == expected
    [wide] = [goal for goal in goals if goal.asin == "B02"]
    assert wide.instruction.startswith("find a wide one, and price lower than ")


def test_the_full_files_go_before_the_small_ones(tmp_path):
    write(tmp_path, size="")
    write(tmp_path, items=ITEMS[:1])
    assert len(load_shop(tmp_path).products) == 5


def test_records_are_read_across_the_borders_of_chunks(tmp_path):
    path = tmp_path / "items_shuffle.json"
    long = [item(f"B{number}", full_description='"]}, \\ é' * 60_000) for number in range(20)]
    path.write_text(json.dumps(long, indent=1, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 2 * CHUNK
    assert list(read_items(path)) == long


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", None, "a string, got None"),
        ("category", 3, "a string, got 3"),
        ("query", ..., "a string, got None"),
        ("product_category", ["a"], "a string, got"),
        ("full_description", 1.5, "a string or null, got 1.5"),
        ("small_description", None, "a list of strings, or a string, got None"),
        ("small_description", [1], "a list of strings, or a string"),
        ("pricing", "free", "a price such as"),
        ("pricing", 12, "a price such as"),
        ("pricing", "$1.2.3", "a price such as"),
        ("customization_options", ["Red"], "an object or null"),
        ("customization_options", {"Color": ["Red"]}, "null or a list of"),
    ],
)
def test_a_malformed_record_is_an_error_with_file_id_and_field(tmp_path, field, value, expected):
    record = item("B07", **{field: value})
    if value is ...:
        del record[field]
    write(tmp_path, items=[*ITEMS, record])
    with pytest.raises(ValueError, match="setup.sh of the WebShop repository") as error:
        load_shop(tmp_path)
    for text in ("items_shuffle_1000.json: record B07, field `" + field, expected):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items": {"a": 1}}, r"items_shuffle_1000.json: expected a JSON list of products, got '\{\"a\"'?"),
        ({"items": [{"name": "x"}]}, "items_shuffle_1000.json: record 0, field `asin`: expected a string, got None"),
        ({"instructions": [1]}, "items_ins_v2_1000.json: expected a JSON object by product id"),
        ({"instructions": {"B01": {"attributes": "soft"}}}, "items_ins_v2_1000.json: B01, field `attributes`"),
        (
            {"instructions": {"B01": {"instruction": "x"}}},
            "B01, field `instruction_attributes`: .* not empty, got None",
        ),
        ({"human": {"B01": [{"instruction": "x"}]}}, "items_human_ins.json: B01, field `instruction_attributes`"),
        ({"human": {"B01": {}}}, "items_human_ins.json: B01: expected a list of objects"),
        ({"human": {"B01": ["x"]}}, "items_human_ins.json: B01: expected a list of objects, got 'x'"),
        (
            {"human": {"B01": [{"instruction_attributes": ["x"]}]}},
            "B01, field `instruction`: expected a string, got None",
        ),
        (
            {"human": {"B01": [{"instruction": "x", "instruction_attributes": ["x"], "instruction_options": "red"}]}},
            "field `instruction_options`: expected a list of strings, or an object, got 'red'",
        ),
    ],
)
def test_malformed_files_are_told(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        load_shop(tmp_path, human_goals=True)


A, B = (json.dumps(item(asin)) for asin in ("B01", "B02"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a JSON list of products, got the end of the file"),
        ("<!DOCTYPE html><title>Quota exceeded</title>", "expected a JSON list of products, got '<!DOCTYPE"),
        (f"\ufeff[{A}]", "expected a JSON list of products"),
        (f"{A}\n{B}\n", "expected a JSON list of products, got '{"),
        (f"[{A}][{B}]", "expected nothing after the list .are these several files in one.., got '\\[{"),
        (f"[{A}]\n\n[{B}]\n", "expected nothing after the list"),
        (f"[{A}, {B}]]", "expected nothing after the list .*, got ']'"),
        (f"[{A}] {' ' * CHUNK} x", "expected nothing after the list .*, got 'x'"),
        (f"[{A} {B}]", "expected a comma or the end of the list, got '{"),
        (f"[{A}}}, {B}]", "expected a comma or the end of the list, got '}"),
        (f"[{A},, {B}]", "not valid JSON .*at ', {"),
        (f"[{A}, {B},]", "not valid JSON .*at ']'"),
        (f"[, {A}]", "not valid JSON .*at ', {"),
        (f"[{A}, {B}", "expected a comma or the end of the list, got the end of the file"),
        (f"[{A}, ", "not valid JSON .*at the end of the file"),
        ("[" * 100_000, "not valid JSON .*recursion"),
    ],
)
def test_what_is_no_whole_list_is_told_and_no_product_is_lost_without_a_word(tmp_path, text, message):
    (write(tmp_path) / "items_shuffle_1000.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"items_shuffle_1000.json: {message}.*setup.sh"):
        load_shop(tmp_path)
    assert not list((tmp_path / ".webshop_cache").glob("*/"))


def test_a_list_that_is_empty_or_spaced_out_is_read(tmp_path):
    path = tmp_path / "items.json"
    for text, count in (
        ("[]", 0),
        (" [ ] ", 0),
        (f"\n[\n{A}\n,\n{B}\n]\n", 2),
        (f"[{A},{' ' * CHUNK}{B}]{' ' * CHUNK}", 2),
    ):
        path.write_text(text)
        assert len(list(read_items(path))) == count


@pytest.mark.parametrize("read", [lambda path: list(read_items(path)), read_records])
def test_a_file_that_breaks_off_anywhere_is_told(tmp_path, read):
    whole = write(tmp_path, items=ITEMS[:1]) / "items_shuffle_1000.json"
    if read is read_records:
        whole = tmp_path / "items_ins_v2_1000.json"
    assert read(whole)
    content, cut = whole.read_bytes(), tmp_path / "cut.json"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut.json: .*(not valid JSON|expected .*got).*setup.sh"):
            read(cut)


@pytest.mark.parametrize("name", ["items_shuffle_1000", "items_ins_v2_1000", "items_human_ins"])
@pytest.mark.parametrize("byte", [b"\xff", b"\xe9", b"\x80", b"\xed\xa0\x80"])
def test_a_byte_that_is_not_utf_8_is_told_with_the_file_and_what_is_before_it(tmp_path, name, byte):
    path = write(tmp_path) / f"{name}.json"
    path.write_bytes(path.read_bytes().replace(b"B01", b"B01" + byte, 1))
    with pytest.raises(ValueError, match=rf"{name}.json: byte {byte[0]:#04x} after '.*B01' is not UTF-8.*setup.sh"):
        load_shop(tmp_path, human_goals=True)


@pytest.mark.parametrize("items", [[], [item("nan")], [item("B0123456789"), item("nan")]])
def test_files_without_products_are_told(tmp_path, items):
    with pytest.raises(ValueError, match="items_shuffle_1000.json: no products: "):
        load_shop(write(tmp_path, items=items))


def test_records_that_the_original_never_reads_may_be_anything(tmp_path):
    odd = [item("B01", name=5), {"asin": "B01"}, {"asin": "nan"}, item("B0123456789", pricing=[])]
    instructions = {**INSTRUCTIONS, "B09": {"attributes": 5}, "B08": None, "nan": 1}
    unread = [
        {"instruction_attributes": []},
        {"instruction_attributes": [], "instruction": 3, "instruction_options": 4},
        {"instruction_attributes": ""},
    ]
    human = {**HUMAN, "B01": [*HUMAN["B01"], *unread], "B09": 5, "B08": [{"instruction": None}], "B0123456789": None}
    write(tmp_path, items=[*ITEMS, *odd], instructions=instructions, human=human)
    assert len(load_shop(tmp_path).products) == 5
    assert {goal.asin for goal in load_shop(tmp_path, human_goals=True).goals} == {"B01", "B02"}


def test_human_goals_may_name_their_options(tmp_path):
    record = {
        "instruction": "a red one",
        "instruction_attributes": ["rubber sole"],
        "instruction_options": {"color": "red"},
    }
    write(tmp_path, human={"B01": [record]})
    [goal] = load_shop(tmp_path, human_goals=True).goals
    assert (goal.options, goal.unnamed_options) == ({"color": "red"}, ())
    env = WebShopEnv(data_dir=tmp_path, human_goals=True)
    env.reset(goal=0)
    for action in ("search[canvas shoe]", "click[b01]", "click[red]", "click[buy now]"):
        step = env.step(f"<action>{action}</action>")
    assert step.info["options"] == 1.0 and step.info["success"]


def test_a_product_may_have_a_word_more_than_65535_times(tmp_path):
    long = [item("B07", full_description="lamp " * 70_000), item("B08", name="shoe " * 66_000)]
    shop = load_shop(write(tmp_path, items=[*ITEMS[:1], *long]))
    index = shop.engine.index
    for word, counts in {"lamp": {"B07": 70_000}, "shoe": {"B01": 2, "B07": 1, "B08": 66_001}}.items():
        span = slice(*index.starts[index.vocabulary[word] :][:2])
        found = {
            shop.products[place].asin: count
            for place, count in zip(index.documents[span], index.counts[span], strict=True)
        }
        assert found == counts
        assert {hit.asin for hit in shop.engine.search(word)} == set(counts)


def test_a_product_whose_options_make_too_many_goals_is_told(tmp_path):
    options = {f"Option {number}": [{"value": str(value)} for value in range(20)] for number in range(17)}
    instructions = {"B07": {"instruction": "any", "instruction_attributes": ["x"]}}
    write(tmp_path, items=[item("B07", customization_options=options)], instructions=instructions)
    with pytest.raises(ValueError, match=f"items_shuffle_1000.json: record B07: its options make {20**17} goals"):
        load_shop(tmp_path)


def test_missing_files_are_told_with_where_they_come_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither items_shuffle.json nor items_shuffle_1000.json.*setup.sh"):
        WebShopEnv(data_dir=tmp_path)
    write(tmp_path)
    (tmp_path / "items_human_ins.json").unlink()
    with pytest.raises(FileNotFoundError, match="items_human_ins.json is missing.*setup.sh"):
        WebShopEnv(data_dir=tmp_path, human_goals=True)
    (tmp_path / "items_ins_v2_1000.json").unlink()
    with pytest.raises(FileNotFoundError, match="items_ins_v2_1000.json is missing.*setup.sh"):
        WebShopEnv(data_dir=tmp_path)


# Generated files


def test_generated_files_are_the_same_for_a_seed_and_hold_odd_records(generated, tmp_path):
    write_files(tmp_path, 1000)
    items = (generated / "items_shuffle_1000.json").read_text()
    assert items == (tmp_path / "items_shuffle_1000.json").read_text()
    records = json.loads(items)
    assert records[0]["asin"] == "nan"
    ids = [record["asin"] for record in records]
    assert len(set(ids)) == 1001 < len(ids)
    products = records[1:]
    assert {None, ""} < {record["pricing"] for record in products}
    assert any(record["pricing"] and " - $" in record["pricing"] for record in products)
    assert any(not record["customization_options"] for record in products)
    assert any("<br>" in record["full_description"] for record in products)
    assert any(isinstance(record["small_description"], str) for record in products)
    assert not all(record["name"].isascii() for record in products)
    assert len(load_shop(generated).products) == 1000


def test_splits_of_a_folder_are_those_of_its_goals(generated, tmp_path):
    goals = load_shop(generated).goals
    test, train = (WebShopEnv.dataset(split, data_dir=generated) for split in ("test", "train"))
    assert list(test["goal"]) == list(range(500)) and list(train["goal"]) == list(range(1500, len(goals)))
    assert train[-1]["task_type"] == goals[len(goals) - 1].category
    assert train[0]["prompt"] == train[-1]["prompt"] == WebShopEnv.dataset("test")[0]["prompt"]
    assert train.features == WebShopEnv.dataset("train").features
    [shop] = set(train["shop"])
    assert re.fullmatch(rf"1000 products, {len(goals)} synthetic goals, seed 0, files [0-9a-f]{{8}}", shop)
    with pytest.raises(ValueError, match="'train' split begins at goal 1500, and the shop has only 20 goals"):
        WebShopEnv.dataset("train", data_dir=generated, human_goals=True)


# Play


def test_the_environment_conforms_on_official_files(generated):
    check_env(WebShopEnv(data_dir=generated), WebShopEnv.dataset("test", data_dir=generated).select(range(5)))


def test_a_thousand_random_episodes_keep_every_invariant(generated):
    env, rng = WebShopEnv(data_dir=generated), random.Random(0)
    ends = wins = 0
    for number in range(1000):
        env.reset(goal=rng.randrange(len(env.shop.goals)))
        skilled = number % 4 == 0  # the others click at random
        query = env.goal.name if skilled else " ".join(rng.sample(env.goal.instruction.split(), 4))
        wanted = [env.goal.asin.lower(), *env.goal.options.values()]
        for turn in range(25):
            page = env.page
            click = rng.choice(page.clickables)
            if skilled:
                left = [name for name in page.clickables if name in wanted and name not in page.options.values()]
                click = left[0] if left else "buy now" if page.kind == "item" else click
            step = env.step(f"<action>search[{query}]</action>" if turn == 0 else f"<action>click[{click}]</action>")
            assert step.valid == (turn == 0 or click != "search") and not step.truncated
            if step.terminated:
                break
            assert step.reward == 0.0 and not step.info
        else:
            continue
        ends += 1
        assert 0 <= step.reward <= 1 and step.reward == step.info["score"]
        assert step.info["success"] == (step.reward == 1)
        if step.info["success"]:
            wins += 1
            assert step.info["type"] == step.info["attributes"] == 1 and step.info["price"]
            assert step.info["options"] in (1, None)
        with pytest.raises(RuntimeError, match="call reset"):
            env.step("<action>search[again]</action>")
    assert ends > 400 and wins > 150


@settings(max_examples=100, deadline=None)
@given(
    actions=st.lists(st.tuples(st.sampled_from(["search", "click", "any"]), st.text(), st.integers(0)), max_size=15)
)
def test_no_sequence_of_actions_raises_or_leaves_the_shop(generated, actions):
    env = WebShopEnv(data_dir=generated)
    env.reset(goal=len(actions))
    kinds = {"search", "results", "item", "description", "features", "reviews", "done"}
    for verb, text, number in actions:
        names = env.page.clickables
        action = {"search": f"search[{text}]", "click": f"click[{names[number % len(names)]}]", "any": text}[verb]
        step = env.step(f"<action>{action}</action>")
        assert env.page.kind in kinds and isinstance(step.observation, str)
        if step.terminated:
            break
