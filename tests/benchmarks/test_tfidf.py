import pytest

from benchmarks.retrieval import ranks_of_targets


def test_queries_find_bodies_through_parts_of_identifiers() -> None:
    pytest.importorskip("sklearn")
    from benchmarks.tfidf import tfidf_scores

    queries = ["Shortest path between two nodes.", "Mean of an array."]
    bodies = ["shortestPath = find_nodes(source)", "return array_sum / mean_of(array)"]
    assert ranks_of_targets(tfidf_scores(queries, bodies)).tolist() == [1, 1]
