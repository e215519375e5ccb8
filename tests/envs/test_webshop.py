"""WebShop: pages, actions and rewards written out by hand from the original's rules, and invariants of play."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_trl.envs import WebShopEnv
from sdar_trl.envs.webshop.catalogue import build_products, listed_prices, parse_options, price_text
from sdar_trl.envs.webshop.goals import NO_LIMIT, Goal, human_goals, limit_text, price_limit, shuffled, synthetic_goals
from sdar_trl.envs.webshop.pages import Page, page_text
from sdar_trl.envs.webshop.reward import score_purchase
from sdar_trl.envs.webshop.search import SearchEngine, build_index
from sdar_trl.envs.webshop.shop import Shop


def item(asin, name, **fields):
    return {
        "asin": asin,
        "name": name,
        "category": "fashion",
        "query": " Canvas Shoe ",
        "product_category": "Clothing › Shoes › Sneakers",
        "full_description": "A <b>light</b> shoe.",
        "small_description": ["Rubber sole.", "Machine wash."],
        "pricing": "$20.00",
        "customization_options": {
            "Color": [{"value": "Navy Blue", "image": None}, {"value": " Red / White ", "image": None}],
            "Size": [{"value": "8", "image": None}, {"value": "9", "image": None}],
            "Fit": None,
        },
        "images": [],
        **fields,
    }


ITEMS = [
    item("B000000001", "Canvas Shoe for Men"),
    item(
        "B000000002",
        "Leather Boot",
        pricing="$30.00 - $40.50",
        customization_options={},
        query="boot",
        full_description="Sturdy.",
    ),
    item("B000000001", "a second one with the same id"),
    item("nan", "no id"),
    item("B00000000012", "an id too long"),
    item(
        "B000000003",
        "Steel Pan",
        pricing="",
        product_category="Kitchen › Pans",
        query="pan",
        full_description="Heavy.",
    ),
]
INSTRUCTIONS = {
    "B000000001": {
        "attributes": ["rubber sole", "light weight"],
        "instruction": "i want a canvas shoe",
        "instruction_attributes": ["rubber sole"],
    }
}
INSTRUCTION = "i want a canvas shoe"


@pytest.fixture
def shop():
    products = build_products(ITEMS, INSTRUCTIONS, random.Random(0))
    goals = shuffled(synthetic_goals(products, random.Random(0)))
    return Shop(products, SearchEngine(products, build_index(products)), goals)


@pytest.fixture
def env(shop):
    env = WebShopEnv()
    env.shop = shop
    return env


def act(env, *actions):
    for action in actions:
        step = env.step(f"<action>{action}</action>")
    return step


# Building the catalogue


def test_products_are_built_by_the_originals_rules(shop):
    assert [product.asin for product in shop.products] == ["B000000001", "B000000002", "B000000003"]
    shoe, boot, pan = shop.products
    assert shoe.options == {"color": ("navy blue", "red  |  white"), "size": ("8", "9")}
    assert shoe.query == "canvas shoe"
    assert (shoe.price_text, shoe.price) == ("$20.0", 20.0)
    assert boot.price_text == "$30.0 to $40.5" and 30.0 <= boot.price <= 40.5
    assert (pan.price_text, pan.price) == ("$100.0", 100.0)
    assert boot.attributes == ("DUMMY_ATTR",)


@pytest.mark.parametrize(
    ("pricing", "text"),
    [
        ("", "$100.0"),
        (None, "$100.0"),
        ("$5.00", "$5.0"),
        ("$1,299.99", "$1299.99"),
        ("$18.99 ($0.53 / 1 Ounce)", "$18.99 to $0.531"),  # digits of what follows count too
    ],
)
def test_prices_are_read_as_the_original_reads_them(pricing, text):
    assert price_text(listed_prices(pricing)) == text


def test_null_options_are_passed_over():
    assert parse_options({"a": None, "B": [{"value": " X ", "image": "x.jpg"}]}) == {"b": ("x",)}


# Goals


def test_one_goal_for_every_combination_of_options(shop):
    goals = synthetic_goals(shop.products, random.Random(0))
    assert len(goals) == 4
    assert {tuple(goal.options.items()) for goal in goals} == {
        (("color", color), ("size", size)) for color in ("navy blue", "red  |  white") for size in ("8", "9")
    }
    first = goals[0]
    limit = f"{first.price_upper:.2f}"
    assert limit in ("40.00", "50.00", "60.00")  # the larger of two of 30, 40, 50, 60
    assert first.instruction == (
        f"i want a canvas shoe with color: navy blue, and size: 8, and price lower than {limit} dollars"
    )
    assert first.weight == pytest.approx(1 / 4)


def test_human_goals_are_made_by_the_originals_rules(shop):
    records = [
        {
            "instruction": "find a shoe.",
            "instruction_attributes": ["rubber sole"],
            "instruction_options": ["light blue"],
        },
        {"instruction": "no attribute", "instruction_attributes": [], "instruction_options": []},
    ]
    [found] = human_goals(shop.products, {"B000000001": records}, random.Random(0))
    assert found.instruction == f"find a shoe, and price lower than {found.price_upper:.2f} dollars"
    assert (found.options, found.unnamed_options, found.weight) == ({}, ("light blue",), 1.0)
    # "light blue" and "navy blue" are both compared as blue
    assert score_purchase(shop.products[0], found, {"color": "navy blue"}).total == 1.0
    assert score_purchase(shop.products[0], found, {"size": "9"}).total == pytest.approx(2 / 3)


def test_the_dearest_products_get_no_price_limit():
    assert price_limit(985.0, random.Random(0)) == NO_LIMIT == 1_000_000.0
    assert limit_text(NO_LIMIT) == ""


def test_the_order_of_goals_is_the_shuffle_with_seed_233():
    expected = list(range(10))
    random.Random(233).shuffle(expected)
    assert shuffled(range(10)) == expected


def test_splits_are_disjoint_and_always_the_same():
    splits = {name: WebShopEnv.dataset(name) for name in ("train", "validation", "test")}
    goals = [set(split["goal"]) for split in splits.values()]
    assert not goals[0] & goals[1] and not goals[0] & goals[2] and not goals[1] & goals[2]
    assert [len(splits[name]) for name in ("test", "validation")] == [500, 1000]
    assert len(splits["train"]) > 1000
    assert set(splits["test"].column_names) == {"prompt", "task_id", "task_type", "goal", "shop"}
    assert splits["test"][0]["task_id"] == "webshop/test/0"
    assert set(splits["test"]["task_type"]) == {"beauty", "electronics", "fashion", "garden", "grocery"}
    with pytest.raises(ValueError, match="test, train, validation, got 'dev'"):
        WebShopEnv.dataset("dev")


# Pages


def head(env):
    return f"Instruction: [SEP] {env.goal.instruction} [SEP] "


def text(env):
    return page_text(env.page, env.goal.instruction)


def test_the_pages_read_as_the_originals(env):
    observation = env.reset(goal=0)
    assert text(env) == "WebShop [SEP] " + head(env) + "Search"
    assert observation == f"Instruction: {env.goal.instruction}\nSearch\nAdmissible actions: search[<your query>]"

    act(env, "search[canvas shoe]")
    hit = "B000000001 [SEP] Canvas Shoe for Men [SEP] $20.0"
    assert text(env) == head(env) + f"Back to Search [SEP] Page 1 (Total results: 1) [SEP] Next > [SEP] {hit}"
    act(env, "click[next >]")
    assert text(env) == head(env) + "Back to Search [SEP] Page 2 (Total results: 1) [SEP] < Prev [SEP] Next >"

    step = act(env, "click[< prev]", "click[b000000001]")
    item_page = (
        "Back to Search [SEP] < Prev [SEP] color [SEP] navy blue [SEP] red  |  white [SEP] size [SEP] 8 [SEP] 9 [SEP] "
        "Canvas Shoe for Men [SEP] Price: $20.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews "
        "[SEP] Buy Now"
    )
    assert text(env) == head(env) + item_page
    assert step.observation == (
        f"{item_page}\nAdmissible actions: click[back to search], click[< prev], click[description], click[features], "
        "click[reviews], click[buy now], click[navy blue], click[red  |  white], click[8], click[9]"
    )
    act(env, "click[navy blue]")
    assert text(env) == head(env) + item_page  # chosen options do not show
    act(env, "click[description]")
    assert text(env) == head(env) + "Back to Search [SEP] < Prev [SEP] A <b>light</b> shoe."
    act(env, "click[< prev]", "click[features]")
    assert text(env) == head(env) + "Back to Search [SEP] < Prev [SEP] Rubber sole. [SEP] Machine wash."
    act(env, "click[< prev]", "click[reviews]")
    assert text(env) == head(env) + "Back to Search [SEP] < Prev"
    act(env, "click[< prev]", "click[buy now]")
    options = json.dumps({"color": "navy blue"})
    assert text(env).startswith(
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk interface.) [SEP] "
        f"Purchased [SEP] asin [SEP] B000000001 [SEP] options [SEP] {options} [SEP] attrs [SEP] None"
    )


def test_results_are_shown_ten_a_page_and_fifty_in_all():
    env = WebShopEnv()
    env.reset(goal=0)
    act(env, "search[size color flavor]")
    assert len(env.page.results) == 50
    first = [product.asin for product in env.page.listed]
    act(env, "click[next >]")
    assert env.page.clickables[:3] == ("back to search", "< prev", "next >")
    assert len(env.page.listed) == 10 and not set(first) & {product.asin for product in env.page.listed}
    act(env, *["click[next >]"] * 4)
    assert not env.page.listed and env.page.number == 6


def test_leaving_an_item_forgets_the_chosen_options(env):
    env.reset(goal=0)
    act(env, "search[shoe]", "click[b000000001]", "click[9]", "click[description]", "click[< prev]")
    assert env.page.options == {"size": "9"}
    act(env, "click[< prev]", "click[b000000001]")
    assert env.page.options == {}


def test_the_attributes_page_is_reached_where_it_is_shown(shop):
    item_page = Page("item", shop.products, product=shop.products[0], show_attributes=True)
    assert item_page.clickables[:7] == (
        *("back to search", "< prev", "description", "features", "reviews", "attributes", "buy now"),
    )
    page = item_page.click("attributes")
    assert page_text(page, "x") == (
        "Instruction: [SEP] x [SEP] Back to Search [SEP] < Prev [SEP] rubber sole [SEP] light weight [SEP] fashion "
        "[SEP] canvas shoe [SEP] Clothing › Shoes › Sneakers"
    )
    assert page.click("< prev") == item_page
    assert page.click("back to search") == Page(show_attributes=True)


def test_an_option_takes_the_place_of_a_button_of_the_same_text():
    values = {"Kit": [{"value": "Buy Now"}, {"value": "7"}], "Size": [{"value": "7"}]}
    [product] = build_products([item("B000000001", "Pan", customization_options=values)], {}, random.Random(0))
    page = Page("item", [product], product=product)
    assert page.clickables == (*("back to search", "< prev", "description", "features", "reviews", "buy now"), "7")
    page = page.click("buy now")
    assert (page.kind, page.options) == ("item", {"kit": "buy now"})
    assert page.click("7").options == {"kit": "buy now", "size": "7"}  # of two options, the later one


def test_white_space_vanishes_only_if_it_holds_a_newline():
    fields = {"full_description": " \n ", "small_description": [" ", "", " Soft. "]}
    [product] = build_products([item("B000000001", "Pan", **fields)], {}, random.Random(0))
    page = Page("description", [product], product=product)
    assert page_text(page, "x") == "Instruction: [SEP] x [SEP] Back to Search [SEP] < Prev"
    features = page_text(page.click("< prev").click("features"), "x")
    assert features == "Instruction: [SEP] x [SEP] Back to Search [SEP] < Prev [SEP]  [SEP] Soft."


@pytest.mark.parametrize(
    "action",
    [
        "click[buy now]",
        "click[search]",
        "click[missing]",
        "CLICK[search]",
        "search",
        "search[]",
        "think[hard]",
        "] [",
        "search[a\nb]",
    ],
)
def test_an_illegal_action_changes_nothing_and_is_answered_with_the_reason(env, action):
    env.reset(goal=0)
    before = text(env)
    step = act(env, action)
    assert not step.valid and step.reward == 0 and not step.terminated
    assert text(env) == before and step.observation.startswith("Invalid action: ")


def test_a_search_is_possible_from_any_page_and_arguments_are_lower_cased(env):
    env.reset(goal=0)
    assert act(env, "search[SHOE]", "click[B000000001]", "search[boot]").valid
    assert [product.asin for product in env.page.results] == ["B000000002"]


@pytest.mark.parametrize(
    ("query", "asins"),
    [
        ("zzz", []),
        ("<a> rubber sole", ["B000000001"]),
        ("<c> fashion", ["B000000001", "B000000002", "B000000003"]),
        ("<q> boot", ["B000000002"]),
        ("<a>", []),
        ("<c>", []),
        ("<q> ", []),
        ("shoe's", ["B000000001"]),
    ],
)
def test_special_searches(env, query, asins):
    env.reset(goal=0)
    act(env, f"search[{query}]")
    assert [product.asin for product in env.page.results] == asins


@pytest.mark.parametrize("word", ["<a>", "<c>", "<q>"])
def test_a_special_search_without_its_word_has_no_hits_and_says_so(env, word):
    env.reset(goal=0)
    step = act(env, f"search[{word}]")
    assert step.valid and step.observation.startswith(f"No hits: {word} needs words after it.\nBack to Search")


# The window on an episode


def test_the_first_prompt_of_a_window_is_the_first_observation(env):
    first = env.reset(goal=0)
    assert WebShopEnv.history(first, [], first, 1) == first


def test_a_window_holds_the_instruction_the_last_pages_and_actions_and_the_present_page(env):
    observations = [env.reset(goal=0)]
    responses = [
        "a shoe <action>search[canvas shoe]</action>",
        " I would buy it. ",
        "<action> click[b000000001] </action>",
    ]
    for response in responses:
        observations.append(env.step(response).observation)
    results, again, item_page = observations[1:]
    assert again == f"Invalid action: answer with one action inside <action></action> tags.\n{results}"
    past = list(zip(observations, responses, strict=False))
    page, actions = results.split("\nAdmissible actions: ")
    assert WebShopEnv.history(observations[0], past[-2:], item_page, 4) == (
        f"Instruction: {env.goal.instruction}\n"
        "Steps taken: 3. The last 2:\n"
        f"[2] {page}\n"
        "> I would buy it.\n"
        f"[3] Invalid action: answer with one action inside <action></action> tags.\n{page}\n"
        "> click[b000000001]\n"
        f"Step 4:\n{item_page}"
    )
    assert WebShopEnv.history(observations[0], past[:1], results, 2) == (
        f"Instruction: {env.goal.instruction}\n"
        "Steps taken: 1. The last 1:\n"
        "[1] Search\n"
        "> search[canvas shoe]\n"
        f"Step 2:\n{page}\nAdmissible actions: {actions}"
    )


# Reward


def goal(**fields):
    defaults = {
        "asin": "B000000001",
        "instruction": "",
        "attributes": ("rubber sole", "wide"),
        "options": {"color": "blue", "size": "9"},
        "price_upper": 30.0,
        "name": "Canvas Shoe for Men",
        "category": "fashion",
        "query": "canvas shoe",
        "product_category": "Clothing › Shoes › Sneakers",
        "weight": 1.0,
    }
    return Goal(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("chosen", "fields", "total"),
    [
        ({"color": "navy blue", "size": "9"}, {}, 4 / 5),  # "wide" is missing; navy blue is compared as blue
        ({"color": "navy blue"}, {}, 3 / 5),
        ({}, {}, 2 / 5),
        ({}, {"price_upper": 19.99}, 1 / 5),
        ({}, {"attributes": ("light",)}, 2 / 4),  # in the description only
        ({"color": "navy blue", "size": "9"}, {"attributes": ("rubber sole",)}, 1.0),
        ({"size": "9"}, {"attributes": ("rubber sole",), "options": {}}, 1.0),
        (
            {},
            {"attributes": ("rubber sole",), "options": {}, "query": "x", "product_category": "y", "name": "pan"},
            0.0,
        ),
    ],
)
def test_the_reward_is_the_originals(shop, chosen, fields, total):
    assert score_purchase(shop.products[0], goal(**fields), chosen).total == pytest.approx(total, abs=1e-12)


def test_the_kind_of_product_is_a_factor(shop):
    pan = shop.products[2]
    # another query, no category in common; one of the ten words of the goal's name
    name = "steel one two three four five six seven eight nine"
    wanted = goal(attributes=("rubber sole",), options={}, price_upper=200.0, name=name)
    assert score_purchase(pan, wanted, {}).type == 0.5
    assert score_purchase(pan, goal(name=name + " ten"), {}).type == 0.1
    assert score_purchase(pan, goal(name="shoe"), {}).type == 0.0


def test_success_can_be_what_is_paid():
    env = WebShopEnv(reward="success")
    last = perfect_purchase(env)
    assert last.reward == 1.0 and last.metrics == {"score": 1.0}
    env.reset(goal=0)
    act(env, f"search[{env.goal.query}]")
    step = act(env, f"click[{env.page.listed[0].asin.lower()}]", "click[buy now]")
    assert 0 < step.info["score"] < 1 and step.reward == 0.0
    with pytest.raises(ValueError, match="score or success, got 'points'"):
        WebShopEnv(reward="points")


def perfect_purchase(env, index=0):
    env.reset(goal=index)
    wanted = env.goal
    act(env, f"search[{wanted.attributes[0]} {wanted.query}]", f"click[{wanted.asin.lower()}]")
    return act(env, *(f"click[{value}]" for value in wanted.options.values()), "click[buy now]")


# The embedded shop, and invariants


def test_the_embedded_shop_can_be_won_and_choosing_matters():
    env = WebShopEnv()
    perfect = naive = first = 0
    indices = range(0, 3000, 15)
    for index in indices:
        perfect += perfect_purchase(env, index).info["success"]
        env.reset(goal=index)
        act(env, f"search[{env.goal.query}]")
        top = env.page.listed[0].asin
        first += top == env.goal.asin
        naive += act(env, f"click[{top.lower()}]", "click[buy now]").info["success"]
    assert perfect / len(indices) > 0.97
    assert naive / len(indices) < 0.05
    assert first / len(indices) < 0.6


def test_random_play_keeps_the_rules():
    env, rng = WebShopEnv(), random.Random(0)
    ended = 0
    for index in range(500):
        env.reset(goal=index)
        for turn in range(30):
            click = rng.choice(env.page.clickables)
            step = act(env, "search[tea chair]" if click == "search" or turn == 0 else f"click[{click}]")
            assert step.valid and not step.truncated
            if step.terminated:
                ended += 1
                assert 0 <= step.reward <= 1 and step.reward == step.info["score"]
                assert step.info["success"] == (step.reward == 1.0)
                if step.info["success"]:
                    assert step.info["type"] == step.info["attributes"] == 1.0 and step.info["price"]
                    assert step.info["options"] in (1.0, None)
                with pytest.raises(RuntimeError, match="call reset"):
                    env.step("")
                break
            assert step.reward == 0.0
    assert ended > 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20) | st.sampled_from(["search", "click"]), max_size=12), st.randoms())
def test_no_sequence_of_responses_raises(texts, rng):
    env = WebShopEnv()
    env.reset(goal=rng.randrange(len(env.shop.goals)))
    for piece in texts:
        options = [*env.page.clickables, piece]
        response = rng.choice(
            [piece, f"<action>search[{piece}]</action>", f"<action>click[{rng.choice(options)}]</action>"]
        )
        step = env.step(response)
        assert isinstance(step.observation, str)
        if step.terminated:
            break


def test_a_thousand_instances_cost_next_to_nothing():
    shop = WebShopEnv().shop
    assert all(WebShopEnv().shop is shop for _ in range(1000))
