"""The whole job, run once: everything that it promises lies in its work directory and is right."""

def test_x(finished):
    print(finished.out, finished.err)
    assert finished.code == 0
