"""TextWorld's grammar of texts and commands, evaluated without copies: templates and queries are parsed once."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

from .guard import imported


with imported():
    from textworld.envs.pddl.logic import _PARSER as _LOGIC_PARSER
    from textworld.envs.pddl.logic import Atom, PddlState, _ModelConverter
    from textworld.envs.pddl.textgen import (
        ConditionalSymbol,
        EvalSymbol,
        ListSymbol,
        NonterminalSymbol,
        Symbol,
        TerminalSymbol,
    )
    from textworld.envs.pddl.textgen import _parse_and_convert as _parse_symbols
    from textworld.logic import Placeholder, Proposition, Rule, Signature, Type, TypeHierarchy, Variable

Bindings = Mapping[Placeholder, Variable]
Rules = dict[str, list[tuple[str, tuple[Symbol, ...]]]]


@lru_cache(maxsize=4096)
def symbols(template: str) -> tuple[Symbol, ...]:
    """A template, parsed."""
    return tuple(_parse_symbols(template, rule_name="symbols"))


@lru_cache(maxsize=1024)
def query(expression: str) -> Rule:
    """A condition, parsed."""
    return Rule.parse_conjunctive_query(expression)


@lru_cache(maxsize=1024)
def code(expression: str) -> CodeType:
    """An expression, compiled."""
    return compile(expression.strip(), "<grammar>", "eval")


_TASK = "@task@"


@lru_cache(maxsize=16)
def _parsed(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return _Converter().walk(_LOGIC_PARSER.parse(text, rule_name="pddlStart"))


class _Converter(_ModelConverter):
    """Reads a grammar's actions, and its rules as they are written."""

    def walk_PddlDocumentNode(self, node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        actions, rules = {}, {}
        for part in node.parts:
            if type(part).__name__ == "ActionTypeNode":
                action = self.walk(part)
                actions[action.name.lower()] = action
                lines = [line for line in action.grammar.split("\n") if not line.lstrip().startswith("#")]
                rules.update(json.loads("\n".join(lines)))
            elif type(part).__name__ == "ActionGrammarNode":
                rules.update(json.loads(self._unescape_block(part.code)))
        return actions, rules


@dataclass(frozen=True)
class Logic:
    """
    A game's grammar.

    Args:
        actions (`dict[str, Any]`): By name, each action with its `template` and its `feedback_rule`.
        rules (`Rules`): By name, alternatives: a condition and what is said.
    """

    actions: dict[str, Any]
    rules: Rules

    @classmethod
    def parse(cls, text: str) -> "Logic":
        """A grammar in the format of `alfred.twl2`."""
        # the sentence of the task is all that differs from one game to another
        before, begins, rest = text.partition("Your task is to: ")
        sentence = rest.partition('"')[0]
        if not begins or "\\" in sentence or "\n" in sentence or _TASK in text:
            before, begins, rest, sentence = text, "", "", ""
        mark = _TASK if sentence else ""
        actions, found = _parsed(f"{before}{begins}{mark}{rest[len(sentence) :]}")
        rules = {
            name: [(rule.get("condition", ""), symbols(rule["rhs"].replace(_TASK, sentence))) for rule in alternatives]
            for name, alternatives in found.items()
        }
        return cls(actions, rules)


class State(PddlState):
    """
    A game's facts, kept beside the planner's library, which applies the actions.

    Args:
        library (`Any`):
            The planner's library.
        translation (`Mapping[str, Any]`):
            The problem, see [`translate`].
    """

    def __init__(self, library: Any, translation: Mapping[str, Any]):
        self._facts: dict[Signature, set[Proposition]] = defaultdict(set)
        self._sorted: dict[Signature, list[Proposition]] = {}
        self._subtypes: dict[Signature, list[Signature]] = {}
        self.changes: Counter[str] = Counter()  # by predicate: how often its facts have changed
        self.downward_lib = library
        self.types = TypeHierarchy()
        for name, parents in translation["types"]:
            with suppress(ValueError):  # the root of all types is there
                self.types.add(Type(name, parents))
        self.name2type = translation["objects"]
        library.load_sas(translation["sas"].encode())
        for name, arguments in translation["facts"]:
            self.add_fact(Proposition(name, [Variable(argument, self.name2type[argument]) for argument in arguments]))
        atoms = (Atom * library.get_state_size())()
        library.get_state(atoms)
        for atom in atoms:
            if not atom.name.startswith("Negated"):
                self.add_fact(atom.get_fact(self.name2type))

    def add_fact(self, prop: Proposition) -> None:
        self._facts[prop.signature].add(prop)
        self._changed(prop)

    def remove_fact(self, prop: Proposition) -> None:
        self._facts[prop.signature].discard(prop)
        self._changed(prop)

    def _changed(self, prop: Proposition) -> None:
        self._sorted.pop(prop.signature, None)
        self.changes[prop.name] += 1

    def apply(self, operator: Any) -> None:
        """Do what one of the library's operators does."""
        effects = (Atom * operator.nb_effect_atoms)()
        self.downward_lib.apply_operator(operator.id, effects)
        for effect in effects:
            fact = effect.get_fact(self.name2type)
            self.remove_fact(fact.negate())
            self.add_fact(fact)

    def matches(self, rule: Rule, bindings: Bindings) -> Iterator[Bindings]:
        """All ways to bind a query's placeholders, given some; TextWorld's `all_assignments`, in its order."""
        bound = dict(bindings)
        return self._matches(rule.preconditions, 0, bound, set(bound.values()))

    def _matches(self, predicates: Any, depth: int, bound: dict, used: set) -> Iterator[Bindings]:
        if depth == len(predicates):
            yield bound.copy()
            return
        predicate = predicates[depth]
        new = [placeholder for placeholder in predicate.parameters if placeholder not in bound]
        if not new:
            fact = Proposition(predicate.name, [bound[placeholder] for placeholder in predicate.parameters])
            if fact.signature in self._signatures(predicate.signature) and fact in self._facts[fact.signature]:
                yield from self._matches(predicates, depth + 1, bound, used)
            return
        for signature in self._signatures(predicate.signature):
            for fact in self._in_order(signature):
                for placeholder, variable in zip(predicate.parameters, fact.arguments, strict=True):
                    existing = bound.get(placeholder)
                    if existing is None:
                        if variable in used:
                            break
                        bound[placeholder] = variable
                        used.add(variable)
                    elif existing != variable:
                        break
                else:
                    yield from self._matches(predicates, depth + 1, bound, used)
                for placeholder in new:
                    used.discard(bound.pop(placeholder, None))

    def _signatures(self, signature: Signature) -> list[Signature]:
        """A predicate's signatures with all subtypes."""
        if signature not in self._subtypes:
            types = self.types.multi_subtypes([self.types.get(name) for name in signature.types])
            self._subtypes[signature] = [Signature(signature.name, [type_.name for type_ in found]) for found in types]
        return [found for found in self._subtypes[signature] if found in self._facts]

    def _in_order(self, signature: Signature) -> list[Proposition]:
        if signature not in self._sorted:
            self._sorted[signature] = sorted(self._facts[signature])
        return self._sorted[signature]


class Wording:
    """
    Says things about a state.

    Args:
        rules (`Rules`):
            The grammar's rules.
        state ([`State`]):
            The state.
        entities (`dict[str, Any]`):
            By id, what is known of a thing, such as its `name`.
    """

    def __init__(self, rules: Rules, state: State, entities: Mapping[str, Any]):
        self._rules = rules
        self._state = state
        self._entities = entities

    def say(self, template: str, bindings: Bindings) -> str:
        """The text of a template."""
        variables = {placeholder.name: self._entities[variable.name] for placeholder, variable in bindings.items()}
        return self._all(symbols(template), bindings, variables)

    def _all(self, sequence: tuple[Symbol, ...], bindings: Bindings, variables: dict[str, Any]) -> str:
        return "".join([self._one(symbol, bindings, variables) for symbol in sequence])

    def _one(self, symbol: Symbol, bindings: Bindings, variables: dict[str, Any]) -> str:
        if isinstance(symbol, TerminalSymbol):
            return str(symbol)
        if isinstance(symbol, NonterminalSymbol):
            return self._rule(str(symbol), bindings, variables)
        if isinstance(symbol, EvalSymbol):
            return str(eval(code(symbol.expression), dict(variables)))
        if isinstance(symbol, ConditionalSymbol):
            return "".join(self._each(symbol, bindings, variables))
        assert isinstance(symbol, ListSymbol)
        found = self._each(symbol.symbol, bindings, variables)
        if not found:
            return self._rule("list_empty", bindings, variables)
        if len(found) == 1:
            return found[0]
        separator = self._rule("list_separator", bindings, variables)
        last = self._rule("list_last_separator", bindings, variables)
        return separator.join(found[:-1]) + last + found[-1]

    def _each(self, symbol: ConditionalSymbol, bindings: Bindings, variables: dict[str, Any]) -> list[str]:
        """What a conditional symbol says for each match of its query."""
        if not symbol.given:
            return [self._one(symbol.expression, bindings, variables)]
        found = []
        for match in self._state.matches(query(symbol.given), bindings):
            named = {placeholder.name: self._entities[variable.name] for placeholder, variable in match.items()}
            found.append(self._one(symbol.expression, {**bindings, **match}, {**variables, **named}))
        return found

    def _rule(self, name: str, bindings: Bindings, variables: dict[str, Any]) -> str:
        """What the first rule of a name says whose condition holds."""
        if name not in self._rules:
            raise KeyError(f"the grammar has no rule {name!r}")
        for condition, said in self._rules[name]:
            if not condition or any(True for _ in self._state.matches(query(condition), bindings)):
                return self._all(said, bindings, variables)
        raise IndexError(f"no alternative of the grammar's rule {name!r} applies")


def predicates(template: str) -> tuple[str, ...]:
    """Names of the predicates that a command's text depends on."""
    found = []
    for symbol in symbols(template):
        inner = symbol.symbol if isinstance(symbol, ListSymbol) else symbol
        if isinstance(inner, ConditionalSymbol) and inner.given:
            found += [predicate.name for predicate in query(inner.given).preconditions]
    return tuple(found)
