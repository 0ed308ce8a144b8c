"""How a bucket travels through Ray's object store."""

import pickle

import torch

from quadriga.actors.weights.object_store import pack_bucket, unpack_bucket


def test_payload_travels_beside_the_pickle() -> None:
    """Ray keeps such buffers in shared memory, which workers map instead of copying."""
    sent = torch.arange(1 << 16, dtype=torch.float32)
    buffers: list[pickle.PickleBuffer] = []
    bucket = pack_bucket([("a", sent)])
    pickled = pickle.dumps(bucket, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 1000
    assert [buffer.raw().nbytes for buffer in buffers] == [bucket.payload.nbytes]
    ((name, received),) = unpack_bucket(pickle.loads(pickled, buffers=[bytes(buffers[0])]))
    assert name == "a"
    assert torch.equal(received, sent)
