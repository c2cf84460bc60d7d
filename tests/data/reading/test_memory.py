"""Shared memory, and values that other processes read."""

import mmap
import os

import numpy as np

from jaxvl.data.reading.memory import Slots, nameless_file, share, shared


def mapped(slots, slot):
    """The slot's memory as another process sees it."""
    return mmap.mmap(slots.file, slots.size, offset=slot * slots.size)


def test_a_slot_is_taken_again_when_nothing_refers_to_it():
    slots = Slots(1000)
    assert slots.size % mmap.ALLOCATIONGRANULARITY == 0 and slots.size >= 1000 and len(slots) == 0
    first, memory = slots.take()
    array = np.frombuffer(memory, np.uint8)[100:200].reshape(10, 10)
    del memory
    second, other = slots.take()
    assert (first, second, len(slots)) == (0, 1, 2)
    del other
    for _ in range(5):
        again, memory = slots.take()
        assert again == 1
        del memory
    part = array[3:5, 2]
    del array
    assert slots.take()[0] == 1, "a view of a view keeps the first one"
    del part
    assert {slots.take()[0] for _ in range(3)} <= {0, 1} and len(slots) == 2
    slots.close()


def test_others_see_what_is_written_and_it_outlives_the_close():
    slots = Slots(8)
    slot, memory = slots.take()
    there = mapped(slots, slot)
    array = np.frombuffer(memory, np.int64, 1)
    array[0] = 77
    assert int.from_bytes(there[:8], "little") == 77
    there[:8] = (78).to_bytes(8, "little")
    slots.close()
    assert array.tolist() == [78]


def test_an_empty_slot_has_memory():
    slots = Slots(0)
    assert slots.size > 0 and slots.take()[0] == 0
    slots.close()


def test_memory_has_no_name(tmp_path):
    file = nameless_file()
    assert os.fstat(file).st_nlink == 0 and not os.get_inheritable(file)
    os.close(file)


def test_arrays_are_shared_and_all_else_is_copied():
    big = np.arange(100_000, dtype=np.int64)
    value = {
        "big": big,
        "turned": big[:100].reshape(4, 25).T,
        "every other": big[::2],
        "empty": np.zeros((0, 3)),
        "text": "grün",
    }
    file, spans = share(value)
    # The pickle, the whole array and the turned one; one with gaps and one of nothing may travel
    # within the pickle.
    assert len(spans) >= 3 and spans[0][1] < 500_000 and (spans[1][1] - spans[1][0]) == big.nbytes
    assert all(first % 64 == 0 for first, _ in spans)
    other = os.dup(file)
    found = shared(file, spans)
    again = shared(other, spans)
    for name, expected in value.items():
        np.testing.assert_array_equal(found[name], expected)
    found["big"][0] = -1  # a copy of its own from here on
    assert again["big"][0] == 0 and big[0] == 0


def test_what_a_script_defines_can_be_shared():
    file, spans = share(lambda x: x + 1)
    assert shared(file, spans)(1) == 2
