"""WebShop: pages, actions and rewards written out by hand from the original's rules, and invariants of play."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.utils import htmlsafe_json_dumps

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


@pytest.mark.parametrize(
    ("options", "wanted", "chosen", "total"),
    [
        ({"Color": "navy blue", "size": 9}, {"Color": "navy blue", "size": "9"}, {"color": "navy blue"}, 3 / 4),
        (
            {"Color": "navy blue", "size": 9},
            {"Color": "navy blue", "size": "9"},
            {"color": "navy blue", "size": "9"},
            1,
        ),
        (
            {"color": "red"},
            {"color": "red"},
            {"color": "navy blue"},
            2 / 3,
        ),  # a word that is a colour is compared as it
        ({"size": None}, {"size": "None"}, {"size": "8"}, 2 / 3),
        ({}, {}, {"size": "8"}, 1),
    ],
)
def test_options_of_human_goals_may_have_names(shop, options, wanted, chosen, total):
    record = {"instruction": "a shoe", "instruction_attributes": ["rubber sole"], "instruction_options": options}
    [found] = human_goals(shop.products, {"B000000001": [record]}, random.Random(0))
    assert (found.options, found.unnamed_options) == (wanted, ())
    assert score_purchase(shop.products[0], found, chosen).total == pytest.approx(total, abs=1e-12)


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


def product_with(**fields):
    [product] = build_products([item("B000000001", "Pan", **fields)], {}, random.Random(0))
    return product


def item_page(*values, **options):
    options = {"Kit": values, **options}
    customization = {name: [{"value": value} for value in values] for name, values in options.items()}
    product = product_with(customization_options=customization)
    return Page("item", [product], product=product)


BUTTONS = ("back to search", "< prev", "description", "features", "reviews", "buy now")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Back to Search", "search"),
        ("< Prev", "results"),
        ("Description", "description"),
        (" FEATURES ", "features"),
        ("reviews", "reviews"),
        ("Attributes", "attributes"),  # not shown, but an option can lead there
        ("Buy Now", "done"),
    ],
)
def test_an_option_with_the_text_of_a_button_acts_as_that_button(text, kind):
    page = item_page("7", text).click("7")
    name = text.strip().lower()
    assert page.clickables == tuple(dict.fromkeys([*BUTTONS, "7", name]))
    after = page.click(name)
    assert after.kind == kind
    assert after.options == ({} if kind in ("search", "results") else {"kit": "7"})
    if kind in ("description", "features", "reviews", "attributes"):
        assert after.click("< prev") == page


def test_an_option_next_is_chosen_since_there_is_no_such_button_on_an_items_page():
    page = item_page("Next >").click("next >")
    assert (page.kind, page.number, page.options) == ("item", 1, {"kit": "next >"})


def test_an_option_search_is_listed_but_cannot_be_clicked(env):
    env.reset(goal=0)
    env._page = page = item_page("Search")
    assert page.clickables == (*BUTTONS, "search")
    assert not act(env, "click[search]").valid and env.page == page


def test_of_two_options_with_the_same_value_the_later_one_is_chosen():
    assert item_page("7", Size=("7", "8")).click("7").options == {"size": "7"}


def test_a_product_with_an_option_buy_now_is_bought_by_it(env):
    env.reset(goal=0)
    env._page = item_page("Buy Now")
    assert act(env, "click[buy now]").terminated


@pytest.mark.parametrize("asin", ["BUY NOW", "FEATURES", "< PREV", "NEXT >", "SEARCH", "ATTRIBUTES"])
def test_a_product_whose_id_is_a_buttons_text_leads_to_no_page_of_another_product(asin):
    products = build_products([item(asin, "Pan"), item("B000000001", "Pot")], {}, random.Random(0))
    page = Page("results", products).click(asin.lower())
    assert page.product in (None, products[0]) and page.kind in ("results", "item")


LINE = "Instruction: [SEP] x [SEP] Back to Search [SEP] < Prev"


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], ""),
        ([""], " [SEP] "),
        (["Soft.", ""], " [SEP] Soft. [SEP] "),
        (["", " ", " Soft. "], " [SEP]  [SEP]  [SEP] Soft."),
        (["\n", "Soft.", " \r\n\t"], " [SEP] Soft."),
        (["\t", "\u00a0", "\u00a0\n"], " [SEP]  [SEP]  [SEP] "),  # a space that does not break is no space of HTML
    ],
)
def test_an_empty_entry_of_a_list_leaves_an_empty_piece_and_only_lines_of_space_vanish(entries, text):
    [product] = build_products(
        [item("B000000001", "Pan", small_description=entries)],
        {"B000000001": {"attributes": entries}},
        random.Random(0),
    )
    page = Page("item", [product], product=product, show_attributes=True)
    assert page_text(page.click("features"), "x") == LINE + text
    rest = " [SEP] fashion [SEP] canvas shoe [SEP] Clothing › Shoes › Sneakers"
    assert page_text(page.click("attributes"), "x") == LINE + text + rest


@pytest.mark.parametrize(
    ("description", "text"),
    [(None, ""), ("", ""), (" \n ", ""), (" ", " [SEP] "), ("\u00a0\n", " [SEP] "), (" a\n ", " [SEP] a")],
)
def test_an_empty_description_leaves_nothing_and_one_of_white_space_an_empty_piece(description, text):
    product = product_with(full_description=description)
    assert page_text(Page("description", [product], product=product), "x") == LINE + text


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.text(), max_size=4))
def test_the_receipt_shows_the_options_sorted_and_safe_in_html(options):
    product = product_with()
    receipt = page_text(Page("done", [product], product=product, options=options), "x")
    shown = receipt.split(" [SEP] options [SEP] ", 1)[1].rsplit(" [SEP] attrs [SEP] None [SEP] category", 1)[0]
    assert shown == str(htmlsafe_json_dumps(options, sort_keys=True))  # the original's templates are Jinja's
    assert json.loads(shown) == options and not set("&<>'") & set(shown)


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


GARBAGE = [
    *(
        "",
        " ",
        "[",
        "]",
        "[]",
        "search",
        "search[",
        "search[]",
        "click[]",
        "click[ ]",
        "] [",
        "search[[[]",
        "click[a]b]",
    ),
    *("<action>", "</action>", "<think>", "search[<r>]", "search[<a>]", "search[<c> ]", "search[<q>", "search[<r> x]"),
    *(
        "\x00",
        "search[\x00]",
        "search[\x1b[31m]",
        "click[\u202e]",
        "search[\ud800]",
        "search[\ufeff\u200d]",
        "click[\x7f]",
    ),
    *("search[a\nb]", "search[\r]", "search[\u2028]", "SEARCH[x]", "click[Buy Now]", "click[click[x]]", "think[x]"),
    *(
        "search[%s]",
        "search[{}]",
        "search[\\]",
        "search['\"]",
        "search[" + "x" * 2_000 + "]",
        "click[" + "€ " * 2_000 + "]",
    ),
]


def test_a_thousand_episodes_of_legal_illegal_and_garbage_actions_end_without_an_exception():
    env, rng = WebShopEnv(), random.Random(0)
    invalid = ended = 0
    for _ in range(1000):
        env.reset(goal=rng.randrange(len(env.shop.goals)))
        for _ in range(15):
            noise = "".join(
                chr(rng.choice((rng.randrange(256), rng.randrange(0x110000)))) for _ in range(rng.randrange(8))
            )
            words = " ".join(rng.sample(env.goal.instruction.split(), 3))
            action = rng.choice(
                [
                    *[f"click[{rng.choice(env.page.clickables)}]"] * 5,
                    f"search[{words}]",
                    f"search[{words} {noise}]",
                    f"click[{noise}]",
                    rng.choice(GARBAGE),
                    noise,
                ]
            )
            before = env.page
            step = env.step(rng.choice([f"<action>{action}</action>"] * 8 + [action, f"<action>{action}"]))
            assert isinstance(step.observation, str) and step.observation
            invalid += not step.valid
            if not step.valid:
                assert env.page == before and step.reward == 0 and not step.terminated
            if step.terminated:
                ended += 1
                assert 0 <= step.reward <= 1
                break
    assert invalid > 5000 and ended > 50


@pytest.mark.parametrize(
    "action",
    ["[" * 50_000, "search[" * 10_000, "]" * 50_000, "[]" * 25_000, "a[" + "]\n[" * 20_000]
    + [
        f"search[{text}]"
        for text in ("_" * 50_000, "é " + "_" * 50_000, "y" * 50_000 + "bly", "yay" * 20_000 + "logy")
    ]
    + [f"search[{text}]" for text in ("a " * 50_000, "a.1," * 20_000, "é'" * 30_000, "中" * 50_000, "\u200d" * 50_000)]
    + ["<action>" * 10_000, "</action>" * 10_000, "click[" + "x" * 1_000_000 + "]"],
)
def test_a_very_long_action_is_answered_at_once(env, action):
    env.reset(goal=0)
    start = time.perf_counter()
    env.step(f"<action>{action}</action>")
    assert time.perf_counter() - start < 5  # where time grows with the square of the length, it takes minutes


@pytest.mark.parametrize("goal", [-1, -3054, 3054, 10**12])
def test_a_goal_that_the_shop_does_not_have_is_told_with_their_number(goal):
    env = WebShopEnv()
    with pytest.raises(ValueError, match=f"`goal` must be at least 0 and below 3054, the number of goals; got {goal}"):
        env.reset(goal=goal)


def test_a_thousand_instances_cost_next_to_nothing():
    shop = WebShopEnv().shop
    assert all(WebShopEnv().shop is shop for _ in range(1000))
