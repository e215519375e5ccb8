"""The shop's pages: what they show, what can be clicked, and where a click leads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .catalogue import Product


SEPARATOR = " [SEP] "
PER_PAGE = 10
SUB_PAGES = ("description", "features", "reviews")
HTML_SPACE = " \n\t\f\r"
SAFE_IN_HTML = {ord(character): f"\\u{ord(character):04x}" for character in "&<>'"}


@dataclass(frozen=True)
class Page:
    """
    Where a customer is.

    Args:
        kind (`str`): "search", "results", "item", "description", "features", "reviews", "attributes" or "done".
        results (`tuple[Product, ...]`, *optional*): Hits of the last search.
        number (`int`, *optional*, defaults to `1`): Page of the results.
        product ([`Product`], *optional*): The product that is open.
        options (`dict[str, str]`, *optional*): Chosen options.
        score (`float`, *optional*, defaults to `0.0`): On the done page, the score.
        show_attributes (`bool`, *optional*, defaults to `False`): Whether item pages lead to the attributes.
    """

    kind: str = "search"
    results: Sequence[Product] = ()
    number: int = 1
    product: Product | None = None
    options: dict[str, str] = field(default_factory=dict)
    score: float = 0.0
    show_attributes: bool = False

    @property
    def sub_pages(self) -> tuple[str, ...]:
        """Pages an item's page leads to."""
        return (*SUB_PAGES, "attributes") if self.show_attributes else SUB_PAGES

    @property
    def listed(self) -> Sequence[Product]:
        """Products on this page of the results."""
        return self.results[(self.number - 1) * PER_PAGE : self.number * PER_PAGE] if self.kind == "results" else ()

    @property
    def buttons(self) -> tuple[str, ...]:
        """Buttons, in page order."""
        if self.kind == "search":
            return ("search",)
        if self.kind == "results":
            return ("back to search", *(["< prev"] if self.number > 1 else []), "next >")
        if self.kind == "item":
            return ("back to search", "< prev", *self.sub_pages, "buy now")
        if self.kind == "done":
            return ()
        return ("back to search", "< prev")

    @property
    def clickables(self) -> tuple[str, ...]:
        """Everything that can be clicked: buttons, then products, then option values."""
        names = dict.fromkeys(self.buttons)
        names.update(dict.fromkeys(product.asin.lower() for product in self.listed))
        if self.kind == "item" and self.product is not None:
            names.update(dict.fromkeys(value for values in self.product.options.values() for value in values))
        return tuple(names)

    def search(self, results: Sequence[Product]) -> "Page":
        """The first page of a search's results."""
        return Page("results", results, show_attributes=self.show_attributes)

    def click(self, name: str) -> "Page":
        """
        The page a click leads to.

        Args:
            name (`str`):
                One of the clickables.

        Returns:
            [`Page`]: the next page; the search page's own button leads nowhere.

        Raises:
            `ValueError`: if the page has no such clickable.
        """
        if name not in self.clickables:
            raise ValueError(f"Expected one of {self.clickables}, got {name!r}.")
        if name == "search":
            return self
        if name == "back to search":
            return Page(show_attributes=self.show_attributes)
        if self.kind == "results":
            if name in self.buttons:
                return replace(self, number=self.number + (1 if name == "next >" else -1))
            product = next(product for product in self.listed if product.asin.lower() == name)
            return replace(self, kind="item", product=product)
        if self.kind == "item":
            return self._click_item(name)
        return replace(self, kind="item")

    def _click_item(self, name: str) -> "Page":
        # as in the original: an option with a button's text is that button, "attributes" even where it is not shown
        if name == "< prev":
            return replace(self, kind="results", product=None, options={})
        if name == "buy now":
            return replace(self, kind="done")
        if name in (*SUB_PAGES, "attributes"):
            return replace(self, kind=name)
        assert self.product is not None
        # of two options that have the value, the later one
        option = next(option for option, values in reversed(self.product.options.items()) if name in values)
        return replace(self, options={**self.options, option: name})

    def pieces(self) -> list[str]:
        """The visible strings that follow the instruction, in order, as the original's text mode shows them."""
        if self.kind == "search":
            return ["Search"]
        if self.kind == "results":
            head = ["Back to Search", f"Page {self.number} (Total results: {len(self.results)})"]
            head += ["< Prev"] if self.number > 1 else []
            return [*head, "Next >", *(text for p in self.listed for text in (p.asin, p.title, p.price_text))]
        if self.product is None:
            raise ValueError(f"A {self.kind!r} page needs a product.")
        if self.kind == "done":
            return self._receipt()
        back = ["Back to Search", "< Prev"]
        if self.kind == "item":
            options = [text for name, values in self.product.options.items() for text in (name, *values)]
            price = f"Price: {self.product.price_text}"
            buttons = [*(name.capitalize() for name in self.sub_pages), "Buy Now"]
            return [*back, *options, self.product.title, price, "Rating: N.A.", *buttons]
        if self.kind == "description":
            return [*back, self.product.description]
        if self.kind == "features":
            return [*back, *_listed(self.product.bullet_points)]
        if self.kind == "attributes":
            paths = (self.product.category, self.product.query, self.product.product_category)
            return [*back, *_listed(self.product.attributes), *paths]
        return back  # reviews: the original never loads any

    def _receipt(self) -> list[str]:
        assert self.product is not None
        return [
            "Thank you for shopping with us!",
            "Your code:",
            "None",
            "(Paste it in your MTurk interface.)",
            "Purchased",
            "asin",
            self.product.asin,
            "options",
            json.dumps(self.options, sort_keys=True).translate(SAFE_IN_HTML),
            *("attrs", "None", "category", "None", "query", "None", "product category", "None"),
            *("Target", "asin", "options", "attrs", "price upper", "instuction text", "category"),  # sic
            *("product category", "query", "Goal", "None", "Reward", "Your score (min 0.0, max 1.0)"),
            str(self.score),
            "Reward Details",
            "None",
        ]


def page_text(page: Page, instruction: str) -> str:
    """
    The original's text observation of a page.

    Args:
        page ([`Page`]):
            The page.
        instruction (`str`):
            The goal's instruction.

    Returns:
        `str`: the visible strings joined by " [SEP] ".
    """
    if page.kind == "done":
        return join(page.pieces())
    head = ["WebShop"] if page.kind == "search" else []
    return join([*head, "Instruction:", instruction, *page.pieces()])


def join(pieces: Sequence[str]) -> str:
    """The text of visible strings: nothing, and white space that holds a newline, vanish, as in the original."""
    return SEPARATOR.join(
        piece.strip() for piece in pieces if piece.strip(HTML_SPACE) or (piece and "\n" not in piece)
    )


def _listed(entries: Sequence[str]) -> list[str]:
    """Entries of a list: in the original's page each follows a space, so that an empty one leaves an empty string."""
    return [f" {entry}" for entry in entries]
