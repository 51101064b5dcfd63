"""Names of classes in options."""

from lib.commands.enrolled_model import known_name_hint


def test_a_part_of_a_name_with_commas_gets_the_whole_name():
    known = ['cocoa', 'tea, red, 100 g']
    for part in ('tea', 'red', '100 g'):
        assert known_name_hint(part, known) == (
            " (did you mean 'tea, red, 100 g'? Names with commas need a .txt file, with a name per line)"
        )
    assert known_name_hint('cacoa', known) == ' (did you mean cocoa?)'
    assert known_name_hint('soap', known) == ''
