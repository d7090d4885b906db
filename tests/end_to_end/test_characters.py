"""Characters by place on the demo model."""

import pytest

from benchmarks.characters import build_policy, build_request, find_hair, sample_scenes
from server.request.resolve import resolve
from server.request.schema import read_request

pytestmark = pytest.mark.slow


def test_two_characters_have_their_own_hair_at_their_places(demo):
    policy = build_policy()
    for index, scene in enumerate(sample_scenes(2)):
        job = resolve(read_request(build_request(scene, 100 + index)), policy).job
        hair = find_hair(demo.run(job).images[0])
        assert hair == [character.hair for character in scene.characters]
