"""Counting matrix products in a trace."""

import jax
import jax.numpy as jnp
import pytest

from synthclip_jax.plan.tiles import TiledProducts, tiled_products

ROWS = jnp.zeros((8, 40))
MATRIX = jnp.zeros((40, 200))


def count(function, *given, tile=1):
    return tiled_products(jax.make_jaxpr(function)(*given), tile)


def test_a_product_is_two_flops_for_each_multiplication():
    assert count(jnp.matmul, ROWS, MATRIX) == TiledProducts(2 * 8 * 40 * 200, 2 * 8 * 40 * 200)


def test_depth_and_columns_are_filled_up_to_the_matrix_unit():
    assert count(jnp.matmul, jnp.zeros((128, 40)), MATRIX, tile=128).tiled == pytest.approx(2 * 128 * 128 * 256)


def test_a_small_head_fills_the_unit_whichever_of_the_factors_it_is_in():
    head, scores = jnp.zeros((4, 128, 40)), jnp.zeros((4, 128, 128))
    for given in ((scores, head), (head.swapaxes(1, 2), scores)):
        assert count(jnp.matmul, *given, tile=128).tiled == pytest.approx(4 * 2 * 128**3)


def test_a_convolution_is_a_product_for_each_place_of_its_window():
    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    given = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))
    assert count(convolved, *given).written == 2 * (2 * 8 * 8) * 16 * 3 * 9
    assert count(convolved, *given, tile=16).tiled == pytest.approx(2 * (2 * 8 * 8) * 16 * 16 * 9)


def test_loops_count_as_often_as_is_known_and_branches_by_the_largest():
    once = count(jnp.matmul, ROWS, MATRIX).written

    def looped(rows, matrix):
        return jax.lax.map(lambda _: rows @ matrix, jnp.arange(3))

    def unknown(rows, matrix, rounds):
        return jax.lax.fori_loop(0, rounds, lambda _, x: x @ matrix @ matrix.T, rows)

    def branched(rows, matrix, which):
        return jax.lax.cond(which, lambda: (rows @ matrix).sum(), lambda: rows.sum())

    assert count(jax.jit(looped), ROWS, MATRIX).written == 3 * once
    assert count(unknown, ROWS, MATRIX, 7).written == 2 * once
    assert count(branched, ROWS, MATRIX, True).written == once


def test_products_of_full_precision_are_counted_apart():
    found = count(lambda x, y: jnp.matmul(x, y, precision="highest"), ROWS, MATRIX)
    assert found == TiledProducts(2 * 8 * 40 * 200, 0.0, 2 * 8 * 40 * 200)
