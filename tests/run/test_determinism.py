"""The same engine and seed give the same bytes, in one process and in another."""

from support.forked import run_forked
from support.people import random_identity

from consisid.engine.variants import TINY

SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[2])
from support.people import random_identity
from consisid.engine import ConsisID
from consisid.engine.variants import TINY
video = ConsisID.open(sys.argv[1]).generate(random_identity(TINY), "A person walks.", seed=42, num_inference_steps=3)
print(hashlib.sha256(video.frames.tobytes()).hexdigest())
"""


def test_same_seed_same_bytes(shallow, shallow_folder, request):
    person, options = random_identity(TINY), {"num_inference_steps": 3}
    first = shallow.generate(person, "A person walks.", seed=42, **options).frames
    again = shallow.generate(person, "A person walks.", seed=42, **options).frames
    other = shallow.generate(person, "A person walks.", seed=43, **options).frames
    assert first.tobytes() == again.tobytes() != other.tobytes()

    import hashlib

    tests = request.config.rootpath / "tests"
    result = run_forked(SCRIPT, shallow_folder, tests)
    assert result.stdout.split() == [hashlib.sha256(first.tobytes()).hexdigest()]
