"""Placement groups whose creator is dead: Ray keeps them, with their CPUs and GPUs, until the job ends."""

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group


def release_orphans() -> int:
    """Remove this job's placement groups that dead actors made; how many there are whose maker lives.

    Asked of the head itself, for not every cluster has a dashboard.
    """
    job, living = ray.get_runtime_context().get_job_id(), 0
    for row in state._connect_and_get_accessor().get_placement_group_table():  # pyright: ignore[reportPrivateUsage]
        group = gcs_pb2.PlacementGroupTableData.FromString(row)  # pyright: ignore[reportAttributeAccessIssue]
        maker = ray.ActorID(group.creator_actor_id)
        if group.state == group.REMOVED or group.is_detached or group.creator_job_id.hex() != job or maker.is_nil():
            continue
        if state.actor_table(maker.hex()).get("State") == "DEAD":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
        else:
            living += 1
    return living
