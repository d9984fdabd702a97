"""What the mutation runs change in the sources before mutmut sees them."""

from __future__ import annotations

from infra.mutate import is_cosmetic, without_decorators


def test_decorators_of_functions_and_methods_are_called_after_them() -> None:
    source = """
import functools

@functools.lru_cache(
    maxsize=4
)
def f(n):

    return n

@dataclass
class A:
    @property
    def one(self):
        return 1

    @staticmethod
    def two():
        return 2

@outer
@inner(3)
def g():
    return 3
"""
    assert (
        without_decorators(source)
        == """
import functools

def f(n):

    return n
f = functools.lru_cache(maxsize=4)(f)

@dataclass
class A:
    def one(self):
        return 1
    one = property(one)

    @staticmethod
    def two():
        return 2

def g():
    return 3
g = outer(inner(3)(g))
"""
    )


def test_other_names_of_steps_are_cosmetic_and_other_changes_are_not() -> None:
    assert is_cosmetic(['-    | "Names" >> beam.Map(f)', '+    | "XXNamesXX" >> beam.Map(f)'])
    assert is_cosmetic(['-    | "Names"', '+    | "names"'])
    assert not is_cosmetic(['-    | "Names" >> beam.Map(f)', '+    | "Names" >> beam.Map(None)'])
    assert not is_cosmetic(['-    | "Names" >> beam.Map(f)', '+    | "Names" << beam.Map(f)'])
    assert not is_cosmetic(['-    name = "Names"', '+    name = "NAMES"'])
