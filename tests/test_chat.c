/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/chat.h"

#include <string.h>

#define GOLDEN LQ_SOURCE_ROOT "/tests/golden/chat/"

static json_t *hello(void) { return json_pack("[{s:s, s:s}]", "role", "user", "content", "Hello"); }

static lq_status render(lq_ctx *ctx, const char *template, lq_buf *out) {
    json_t *messages = hello();
    *out = (lq_buf){0};
    lq_status st = lq_chat_render(ctx, template, strlen(template), messages, "<s>", "</s>", false, out);
    json_decref(messages);
    return st;
}

static const char *str(const json_t *v, const char *key) { return json_string_value(json_object_get(v, key)); }

static void every_template_writes_what_transformers_writes(void **state) {
    (void)state;
    json_t *cases, *c;
    size_t i;
    lq_ctx ctx = {0};
    assert_int_equal(lq_json_load(NULL, GOLDEN "cases.json", &cases), LQ_OK);
    assert_true(json_array_size(cases) > 30);
    json_array_foreach(cases, i, c) {
        char path[512];
        lq_buf text, out = {0};
        snprintf(path, sizeof path, GOLDEN "%s.jinja", str(c, "template"));
        assert_int_equal(lq_file_slurp(NULL, path, 1 << 20, &text), LQ_OK);
        lq_status st = lq_chat_render(&ctx, text.v, text.n, json_object_get(c, "messages"), str(c, "bos"), str(c, "eos"),
                                      json_is_true(json_object_get(c, "add_generation_prompt")), &out);
        if (st) fail_msg("%s case %zu: %s", str(c, "template"), i, ctx.msg);
        if (strcmp(out.v ? out.v : "", str(c, "want"))) fail_msg("%s case %zu: got\n%s\nwanted\n%s", str(c, "template"), i, out.v, str(c, "want"));
        lq_buf_free(&text);
        lq_buf_free(&out);
    }
    json_decref(cases);
}

static void an_unknown_construct_is_refused_by_name(void **state) {
    (void)state;
    static const char *const bad[][2] = {{"{% macro f() %}{% endmacro %}", "macro"}, {"{% include 'x' %}", "include"}, {"{{ 1 | frobnicate }}", "frobnicate"},
                                         {"{{ 'a'.format(1) }}", "format"}, {"{{ lipsum(1) }}", "lipsum"}, {"{{ 1 is perfect }}", "perfect"},
                                         {"{{ messages.append(1) }}", "append"}, {"{{ messages }}", "a list"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lq_ctx ctx = {0};
        lq_buf out;
        assert_int_equal(render(&ctx, bad[i][0], &out), LQ_ERR_UNSUPPORTED);
        assert_non_null(strstr(ctx.msg, bad[i][1]));
        lq_buf_free(&out);
    }
}

static void a_malformed_template_is_an_error_and_no_crash(void **state) {
    (void)state;
    static const char *const bad[] = {"{{", "{%", "{#", "{{ 'a }}", "{% if %}", "{% if 1 %}", "{% for %}{% endfor %}", "{% for a in %}", "{{ a. }}", "{{ a[ }}",
                                      "{{ (1 }}", "{% endif %}", "{{ 1 + }}", "{{ 1 / 0 }}", "{{ nothing.at.all }}", "{{ 'a' + 1 }}", "{{ -'a' }}",
                                      "{% set x.y = 1 %}", "{% for a, b in [1] %}{% endfor %}", "{{ [1, 2][::0] }}", "{{ raise_exception('no') }}", "{{ ? }}",
                                      "{% set a, b = [1] %}", "{{ 'a' < 1 }}", "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lq_buf out;
        lq_status st = render(NULL, bad[i], &out);
        if (st != LQ_ERR_FORMAT && st != LQ_ERR_UNSUPPORTED) fail_msg("'%s' gave %d", bad[i], (int)st);
        lq_buf_free(&out);
    }
}

static void a_template_without_end_is_stopped(void **state) {
    (void)state;
    static const char *const bad[] = {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% set ms = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ms.x = [ms.x, ms.x] %}{% endfor %}{{ ns.x == ms.x }}",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{% set c = namespace() %}{% set d = namespace(a=c) %}{% set c.b = d %}{{ a == c }}{{ a | tojson }}",
        "{{ 'a' * 999999999999 }}", "{{ range(999999999) }}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lq_buf out;
        if (render(NULL, bad[i], &out) != LQ_ERR_UNSUPPORTED) fail_msg("template %zu was not stopped", i);
        lq_buf_free(&out);
    }
}

static void deep_nesting_is_refused(void **state) {
    (void)state;
    static const char *const unit[] = {"(", "[", "-", "not ", "{% if 1 %}", "a.b.", "1+"};
    for (size_t u = 0; u < sizeof unit / sizeof *unit; u++) {
        lq_buf t = {0}, out;
        if (unit[u][1] != '%') assert_true(lq_buf_add(&t, "{{ ", 3));
        for (int i = 0; i < 50000; i++) assert_true(lq_buf_add(&t, unit[u], strlen(unit[u])));
        if (unit[u][1] != '%') assert_true(lq_buf_add(&t, "1 }}", 4));
        assert_int_not_equal(render(NULL, t.v, &out), LQ_OK);
        lq_buf_free(&t);
        lq_buf_free(&out);
    }
}

static void prefixes_of_a_template_are_read_or_refused(void **state) {
    (void)state;
    lq_buf text;
    json_t *messages = hello();
    assert_int_equal(lq_file_slurp(NULL, GOLDEN "qwen3.jinja", 1 << 20, &text), LQ_OK);
    for (size_t n = 0; n < text.n; n += 7) {
        lq_buf out = {0};
        lq_chat_render(NULL, text.v, n, messages, "", "", true, &out);
        lq_buf_free(&out);
    }
    lq_buf_free(&text);
    json_decref(messages);
}

static void running_out_of_memory_is_an_error(void **state) {
    (void)state;
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; n < 200 && st; n++) {
        lq_buf out;
        lq_mem_fail_after(n);
        st = render(NULL, "{% for m in messages %}{{ m.role ~ 1 }}{% set a = 'x' %}{{ a | upper }}{% endfor %}", &out);
        lq_mem_fail_after(-1);
        assert_true(!st || st == LQ_ERR_RESOURCE);
        lq_buf_free(&out);
    }
    assert_int_equal(st, LQ_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_template_writes_what_transformers_writes),
        cmocka_unit_test(an_unknown_construct_is_refused_by_name),
        cmocka_unit_test(a_malformed_template_is_an_error_and_no_crash),
        cmocka_unit_test(a_template_without_end_is_stopped),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(prefixes_of_a_template_are_read_or_refused),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
