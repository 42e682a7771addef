# ruff: noqa: E501
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdecode.convert import chat
from jaxdecode.errors import InputError, JaxdecodeError, UnsafeCheckpointError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def render(template, messages=MESSAGES):
    return chat.render(
        template, messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )


CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message.content ~ '<|im_end|>\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            CHATML,
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("{{ bos_token }}x{{ eos_token }}{{ tools is none }}", "<s>x</s>True"),
        ("{{ messages[:1]|tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ {'a': '<é>'}|tojson(indent=1) }}", '{\n "a": "<é>"\n}'),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{% generation %}kept{% endgeneration %}", "kept"),
        ("{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}", "3"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}", "1/2False 2/2True "),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}", "A1"),
        ("{{ dict(a=1).a }}{{ 'a-b'.split('-')[1] }}{{ '%s' % 'c' }}{{ '{}'.format(2) }}", "1bc2"),
        ("{{ messages[1:]|map(attribute='role')|join(',') }}", "assistant"),
        ("   {% if true %}\nx\n{% endif %}\n", "x\n"),
        ("{{ strftime_now('%Y')|length }}", "4"),
    ],
)  # fmt: skip
def test_templates(template, text):
    assert render(template) == text


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'].__base__ }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__['__builtins__'] }}",
    "{{ dict.__globals__ }}",
    "{{ dict.__func__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ raise_exception.__globals__['jinja2'] }}",
    "{{ strftime_now.__globals__.datetime.sys.modules }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ config.__class__ }}{{ config.items() }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}'|string).format(messages) }}",
    "{{ messages|map('attr', '__class__')|first|attr('__mro__') }}{{ 1/0 }}",
    "{% set f = ''.format %}{{ f.__globals__ }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ namespace({'__html__': range}) }}",
    "{{ namespace(**{'__class__': range}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages.clear() }}",
    "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}{{ m._environment }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ [].__reduce_ex__(2) }}",
    "{{ (1).__class__.__base__.__subclasses__() }}",
    "{{ caller.__globals__ }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_escapes_are_refused(template):
    messages = [dict(message) for message in MESSAGES]
    with pytest.raises((UnsafeCheckpointError, InputError)):
        render(template, messages)
    assert messages == MESSAGES


BOMBS = [
    "{{ 'a' * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ 2 ** 100000000 }}",
    "{{ 10 ** (9 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w='1000000000') }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'|indent(1000000000) }}",
    "{{ {'a': 1}|tojson(indent=1000000000) }}",
    "{{ [1]|batch(1000000000, 'x')|list }}",
    "{{ range(1000000000)|list }}",
    "{% set x = 'a' * 10000000 %}{{ x.replace('a', x) }}",
    "{% set x = 'a' * 10000000 %}{{ x.join(x) }}",
    "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
    "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "{% set x = ['aaaaaaaaaaaaaaaa'] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{{ ('a ' * 1000000)|wordwrap(1) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% set x = 1 %}" * 50_000,
]


@pytest.mark.parametrize("template", BOMBS, ids=lambda text: text[:40])
def test_bombs_are_stopped_soon(template):
    start = time.process_time()
    with pytest.raises((UnsafeCheckpointError, InputError)):
        render(template)
    assert time.process_time() - start < 5


def test_a_long_conversation_is_within_the_limits():
    messages = [{"role": "user", "content": "word " * 1000}] * 1000
    assert len(render(CHATML, messages)) > 5_000_000


def test_template_errors_carry_the_templates_message():
    with pytest.raises(InputError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="unexpected"):
        render("{% for")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "list of dicts"),
        ([], "empty"),
        (["hi"], r"messages\[0\] must be a dict"),
        ([MESSAGES[0], {"role": "user"}], r"messages\[1\].content must be text, got nothing"),
        ([{"role": 1, "content": "x"}], r"messages\[0\].role must be text, got int"),
        ([{"role": "user", "content": [1]}], r"messages\[0\].content must be text, got list"),
        ([{"role": "user", "content": "x", "name": "y"}], r"messages\[0\].name is not supported"),
    ],
)
def test_messages_are_checked(messages, message):
    with pytest.raises(InputError, match=message):
        render(CHATML, messages)


PARTS = st.sampled_from(
    ["{{", "}}", "{%", "%}", " for m in messages ", "endfor", "m.role", "'a'", "|", "tojson", "(", ")",
     "[0]", "messages", "set x = ", "x", " if ", "endif", "~", "*", "1", "__class__", ".", "{#", "join"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PARTS, max_size=12).map(" ".join), st.text(max_size=30)))
def test_any_template_renders_or_fails_by_the_book(template):
    try:
        assert isinstance(render(template), str)
    except JaxdecodeError as error:
        assert isinstance(error, InputError | UnsafeCheckpointError)
