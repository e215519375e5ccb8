"""The teacher's prompt, for chat templates of several families."""

import pytest
from jinja2.exceptions import TemplateError

from sdar_trl.chat import Chat
from sdar_trl.teacher import fit_teacher_rows


CONTEXT = "# Skills\n\nBe kind."
# Default systems and shapes of well-known templates, reduced to what matters here.
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
WITHOUT_DEFAULT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
USER = {"role": "user", "content": "Buy shoes."}


def with_template(tokenizer, template):
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("template", "default"), [(WITH_DEFAULT, "You are helpful."), (WITHOUT_DEFAULT, "")])
def test_the_templates_own_system_text_is_kept_in_both_rows(tokenizer, template, default):
    tokenizer = with_template(tokenizer, template)
    chat = Chat(tokenizer)
    assert chat.default_system == default
    student = tokenizer.apply_chat_template([USER], tokenize=False)
    teacher = tokenizer.apply_chat_template(chat.with_context([USER], CONTEXT), tokenize=False)
    assert teacher.count("<|im_start|>system") == 1
    if default:
        assert teacher == student.replace(default, f"{default}\n\n{CONTEXT}")
    else:
        assert teacher == f"<|im_start|>system\n{CONTEXT}<|im_end|>\n" + student


def test_a_template_without_a_system_role_is_refused_with_the_way_out(tokenizer):
    with pytest.raises(ValueError, match='context_role="user"') as error:
        Chat(with_template(tokenizer, WITHOUT_SYSTEM)).with_context([USER], CONTEXT)
    assert isinstance(error.value.__cause__, TemplateError)


def test_the_context_is_appended_to_a_system_message_that_is_there(tokenizer):
    messages = [{"role": "system", "content": "Rules."}, USER]
    assert Chat(with_template(tokenizer, WITH_DEFAULT)).with_context(messages, CONTEXT) == [
        {"role": "system", "content": f"Rules.\n\n{CONTEXT}"},
        USER,
    ]
    assert messages[0]["content"] == "Rules."


def test_an_empty_context_changes_nothing(tokenizer):
    assert Chat(with_template(tokenizer, WITHOUT_SYSTEM)).with_context([USER], "") == [USER]


def test_a_row_fits_whole_or_not_at_all():
    prompts, fits = fit_teacher_rows([[1] * 6, [1] * 9], [[2] * 3, [2] * 3], [4, 4], 10, "skip")
    assert (prompts, fits) == ([[1] * 6, [2] * 3], [True, False])
    with pytest.raises(ValueError, match=r"13 tokens \(6 of context, 3 of prompt, 4 of completion\).*the 10 that fit"):
        fit_teacher_rows([[1] * 6, [1] * 9], [[2] * 3, [2] * 3], [4, 4], 10, "error")
