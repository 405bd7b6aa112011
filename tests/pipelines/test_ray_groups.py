"""What Ray leaves of an actor that made a placement group and died."""

import pytest
from stack import taken, until

from pipelines import cluster, train


@pytest.mark.slow
def test_groups_of_dead_actors_are_released_and_no_others(stack, bucket):
    """One whose maker dies, one whose maker lives, one of the driver: the first goes, and its CPU with it."""

    class Maker:
        def make(self) -> str:
            import ray

            group = ray.util.placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return group.id.hex()

    with cluster.connect(env=train.worker_env()):
        import ray

        from pipelines.ray_groups import release_orphans

        own = ray.util.placement_group([{"memory": 1 << 20}])
        makers = [ray.remote(num_cpus=0)(Maker).remote() for _ in range(2)]
        groups = ray.get([maker.make.remote() for maker in makers])
        assert release_orphans() == 2
        until(lambda: taken(stack).get("CPU") == 2)
        ray.kill(makers[0])
        until(lambda: release_orphans() == 1)
        until(lambda: taken(stack).get("CPU") == 1)
        kept = {key for key, group in ray.util.placement_group_table().items() if group["state"] == "CREATED"}
        assert kept == {groups[1], own.id.hex()}
