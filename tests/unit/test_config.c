/* test_config - the table of keys: YAML, command line, messages, writing back, phases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "arenas.h"
#include "config.h"
#include "expect.h"
#include "fileio.h"

static vq_config config;

static vq_status yaml(const char *text)
{
    EXPECT_OK(vq_config_defaults(&arena, &config));
    return vq_config_parse_yaml(&arena, "a.yaml", text, strlen(text), &config);
}

/* vq_config_load with the words of line. */
static vq_status load(vq_command command, const char *line)
{
    const char *word[64];
    char *copy;
    int n = 0;
    EXPECT_OK(vq_arena_text(&arena, line, strlen(line), &copy));
    for (char *p = strtok(copy, " "); p; p = strtok(NULL, " ")) word[n++] = p;
    return vq_config_load(&arena, command, n, word, &config);
}

#define QUANTIZE "--model m --text t --out r "

static void defaults_are_the_references(void **state)
{
    (void)state;
    EXPECT_OK(vq_config_defaults(&arena, &config));
    assert_null(config.model);
    assert_int_equal(config.text.n, 0);
    assert_int_equal(config.method, VQ_METHOD_VQROUND);
    assert_int_equal(config.bits, 4);
    assert_int_equal(config.group_size, -1);
    assert_false(config.sym);
    assert_int_equal(config.D, 8);
    assert_int_equal(config.K, 4096);
    assert_int_equal(config.skip.n, 1);
    assert_string_equal(config.skip.item[0], "lm_head");
    assert_int_equal(config.nsamples, 128);
    assert_int_equal(config.seqlen, 2048);
    assert_int_equal(config.calib.mode, VQ_CALIB_WIKITEXT2);
    assert_true(config.grid.include_zero);
    assert_int_equal(config.grid.scale_dtype, VQ_SCALE_AUTO);
    assert_int_equal(config.kmeans.engine, VQ_KMEANS_VQ);
    assert_int_equal(config.kmeans.start, VQ_START_OWN);
    assert_int_equal(config.kmeans.seed, 1234);
    assert_int_equal(config.train.steps, 5000);
    assert_true(config.train.lr == 0.01);
    assert_int_equal(config.train.loss, VQ_LOSS_KD);
    assert_true(config.train.beta_hold == 0.1);
    assert_int_equal(config.train.recompute, VQ_AUTO);
    assert_true(config.teacher.cache && config.eval.run && config.resume);
    assert_int_equal(config.device, VQ_DEVICE_AUTO);
    assert_int_equal(config.checkpoint.every, 200);
}

static void yaml_is_nested_or_dotted(void **state)
{
    (void)state;
    EXPECT_OK(yaml("model: /m # a comment\n"
                   "text: [a.txt, 'b c.txt']\n"
                   "bits: 3\n"
                   "train:\n"
                   "  lr: 1e-3\n"
                   "  recompute: on\n"
                   "train.steps: 10\n"
                   "teacher: {model: ~, cache: off}\n"
                   "skip:\n"
                   "device: \"cpu\"\n"));
    assert_string_equal(config.model, "/m");
    assert_int_equal(config.text.n, 2);
    assert_string_equal(config.text.item[1], "b c.txt");
    assert_int_equal(config.bits, 3);
    assert_true(config.train.lr == 1e-3);
    assert_int_equal(config.train.steps, 10);
    assert_int_equal(config.train.recompute, VQ_ON);
    assert_null(config.teacher.model);
    assert_false(config.teacher.cache);
    assert_int_equal(config.skip.n, 0);
    assert_int_equal(config.device, VQ_DEVICE_CPU);
    char where[256];
    assert_string_equal(vq_config_where(&config, "train.lr", where), "a.yaml:5 train.lr");
    assert_string_equal(vq_config_where(&config, "seed", where), "seed (default)");
    EXPECT_OK(yaml("text: one.txt"));
    assert_int_equal(config.text.n, 1);
    EXPECT_OK(yaml(""));
    EXPECT_OK(yaml("# nothing\n"));
    EXPECT_OK(yaml("---\n...\n"));
}

#define BAD(text, ...) EXPECT_ERROR(yaml(text), VQ_EUSAGE, __VA_ARGS__)

static void wrong_yaml_names_the_line(void **state)
{
    (void)state;
    BAD("seed: 1\nbits: 9\n", "a.yaml:2 bits = 9: expected 2, 3, 4 or 8. Change it, or see "
                              "\"vqround quantize --help\"");
    BAD("quant:\n  bits: 4", "a.yaml:1 quant: there is no such key", "--help");
    BAD("quant.bits: 4", "a.yaml:1 quant.bits: there is no such key", "bits, the nearest");
    BAD("train:\n  lrr: 4", "a.yaml:2 train.lrr", "train.lr, the nearest");
    BAD("nsample: 4", "nsamples, the nearest");
    BAD("bits: 4\nseed: 1\nbits: 3", "a.yaml:3 bits is there twice, first in line 1", "Remove one");
    BAD("train.lr: 1\ntrain: {lr: 2}", "train.lr is there twice");
    BAD("train: {beta_hi: 1, beta_lo: 1}",
        "train.beta_hi = 1: expected a number from 1.01 to 1000");
    BAD("train.lr: fast", "train.lr = fast: expected a number from 0 to 100");
    BAD("train.lr: 1x", "train.lr = 1x");
    BAD("train.lr: .inf", "train.lr = .inf");
    BAD("train.lr: -1", "train.lr = -1");
    BAD("train.lr: 0x10", "train.lr = 0x10");
    BAD("train.lr:", "train.lr = : expected a number");
    BAD("seqlen: 1", "seqlen = 1: expected an integer from 2 to 1048576");
    BAD("seqlen: 1.5", "seqlen = 1.5: expected an integer");
    BAD("seed: 99999999999999999999", "seed = 99999999999999999999: expected an integer from 0 up");
    BAD("bits: 04", "bits = 04: expected 2, 3, 4 or 8");
    BAD("sym: maybe", "sym = maybe: expected true or false");
    BAD("calib.mode: ptb", "calib.mode = ptb: expected wikitext2 or c4");
    BAD("text: ''", "text = : expected a text that is not empty (FILE)");
    BAD("text: [a, '']", "text = : expected");
    BAD("text: [a, [b]]", "a.yaml:1 text: expected a text, or a list of texts");
    BAD("text: {a: b}", "expected a text, or a list");
    BAD("bits: [4]", "bits: expected one value");
    BAD("bits: &x 4\nseed: *x", "a.yaml:2 seed: expected one value");
    BAD("config: b.yaml", "config: expected on the command line only", "Remove it");
    BAD("[a]: 1", "a key that is no text");
    BAD("- a\n", "a.yaml:1: expected lines such as");
    BAD("just text", "a.yaml:1: expected lines such as");
    BAD("bits: 4\n---\nbits: 4", "a second YAML document", "Remove it");
    BAD("seed: 1\ntrain: {lr: 1}}\n", "a.yaml:2", "expected YAML lines", "Correct it");
    BAD("a: \"", "a.yaml", "Correct it");
    BAD("model: \"a\\0b\"", "NUL");
    BAD("\xff\xfe\xfd", "a.yaml:1", "Correct it");
    char deep[4096];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    BAD(deep, "a.yaml:1");
}

static void command_line_beats_file_and_default(void **state)
{
    (void)state;
    const char *text = "bits: 2\ntrain.lr: 0.5\ntext: [x, y]\nseed: 7\nmodel: m\nout: r\n";
    EXPECT_OK(vq_file_write("config-test.yaml", text, strlen(text)));
    EXPECT_OK(load(VQ_QUANTIZE,
                   "--config config-test.yaml --lr 0.25 --text a --text=b --sym --no-eval "
                   "--group-size -1 --train.kd_alpha=3 --max-hours 1.5 --batch_size 2 "
                   "--teacher.cache off --json true"));
    assert_int_equal(config.bits, 2);
    assert_int_equal(config.seed, 7);
    assert_true(config.train.lr == 0.25 && config.train.kd_alpha == 3 && config.max_hours == 1.5);
    assert_int_equal(config.text.n, 2);
    assert_string_equal(config.text.item[0], "a");
    assert_string_equal(config.text.item[1], "b");
    assert_true(config.sym && !config.eval.run && !config.teacher.cache && config.json);
    assert_int_equal(config.train.batch, 2);
    char where[256];
    assert_string_equal(vq_config_where(&config, "train.lr", where), "--lr");
    assert_string_equal(vq_config_where(&config, "bits", where), "config-test.yaml:1 bits");
    EXPECT_OK(load(VQ_EVAL, "--model m --text t --max-windows 3"));
    assert_int_equal(config.eval.max_windows, 3);
    EXPECT_OK(load(VQ_INSPECT, "some/path --json"));
    assert_int_equal(config.args.n, 1);
    assert_string_equal(config.args.item[0], "some/path");
    EXPECT_OK(load(VQ_REPORT, "a --out b c"));
    assert_int_equal(config.args.n, 2);
    assert_string_equal(config.args.item[1], "c");
    assert_string_equal(config.out, "b");
    EXPECT_OK(load(VQ_QUANTIZE, "--help"));
    assert_true(config.help);
    EXPECT_OK(load(VQ_QUANTIZE, "--bits 3 -h"));
    assert_true(config.help);
}

#define WRONG(command, line, ...) EXPECT_ERROR(load(command, line), VQ_EUSAGE, __VA_ARGS__)

static void wrong_command_lines_name_the_flag(void **state)
{
    (void)state;
    WRONG(VQ_QUANTIZE, QUANTIZE "--bits 9", "--bits = 9: expected 2, 3, 4 or 8",
          "vqround quantize --help");
    WRONG(VQ_QUANTIZE, QUANTIZE "--bitz 9", "--bitz: there is no such flag", "--bits, the nearest");
    WRONG(VQ_QUANTIZE, QUANTIZE "--learning-rate=9", "--learning-rate: there is no such flag");
    WRONG(VQ_QUANTIZE, QUANTIZE "--bits", "--bits has no value", "expected 2, 3", "Add it");
    WRONG(VQ_QUANTIZE, "--out --bits 3", "--out has no value", "PATH");
    WRONG(VQ_QUANTIZE, QUANTIZE "--bits 3 --bits 4", "--bits is given twice", "Remove one");
    WRONG(VQ_QUANTIZE, QUANTIZE "--lr 3 --train.lr 4", "--train.lr is given twice");
    WRONG(VQ_QUANTIZE, QUANTIZE "--no-sym=true", "--no-sym=true: expected --no-", "Remove");
    WRONG(VQ_QUANTIZE, QUANTIZE "--no-bits", "--no-bits: there is no such flag");
    WRONG(VQ_QUANTIZE, QUANTIZE "--sym=2", "--sym = 2: expected true or false");
    WRONG(VQ_QUANTIZE, "--model m stray", "\"stray\" stands alone", "vqround quantize --help");
    WRONG(VQ_QUANTIZE, "-b 3", "\"-b\" stands alone");
    WRONG(VQ_EVAL, "--lr 3", "--lr is a flag of other subcommands", "vqround eval --help");
    WRONG(VQ_QUANTIZE, "--text t --out r", "--model is missing", "--model DIR", "Add it");
    WRONG(VQ_TOKENS, "--text t --model m", "--out is missing");
    WRONG(VQ_EVAL, "--model m", "--text is missing, expected --text FILE");
    WRONG(VQ_INSPECT, "", "0 paths", "expected one");
    WRONG(VQ_INSPECT, "a b", "2 paths", "expected one");
    WRONG(VQ_REPORT, "--out x", "no folder is given", "vqround report --help");
    WRONG(VQ_QUANTIZE, QUANTIZE "--group-size 0", "--group-size = 0: expected -1");
    WRONG(VQ_QUANTIZE, QUANTIZE "--train.beta-lo 30", "--train.beta-lo = 30",
          "train.beta_hi = 20 (train.beta_hi (default))", "Change");
    WRONG(VQ_QUANTIZE, QUANTIZE "--quiet --verbose", "--quiet and --verbose exclude each other");
    EXPECT_ERROR(load(VQ_QUANTIZE, QUANTIZE "--grid mse --no-grid.include_zero"), VQ_EUNSUPPORTED,
                 "--grid = mse: expected minmax", "(--no-grid.include_zero)", "Leave one");
    EXPECT_ERROR(load(VQ_QUANTIZE, QUANTIZE "--by-sign --kmeans.start shared"), VQ_EUNSUPPORTED,
                 "--kmeans.start = shared: expected own", "(--by-sign)", "Leave it out");
    EXPECT_ERROR(load(VQ_QUANTIZE, QUANTIZE "--config no-such.yaml"), VQ_EFILE, "no-such.yaml",
                 "Check the path");
    vq_command command;
    EXPECT_OK(vq_command_find("tokens", &command));
    assert_int_equal(command, VQ_TOKENS);
    assert_string_equal(vq_command_name(command), "tokens");
    EXPECT_ERROR(vq_command_find("evla", &command), VQ_EUSAGE, "evla", "eval, the nearest",
                 "vqround --help");
}

static void values_are_listed(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
    } expected[] = {{"model", "m"},          {"text", "t \"u\""}, {"train.lr", "0.1"},
                    {"seed", "90071992547"}, {"sym", "true"},     {"calib.mode", "c4"},
                    {"share.dir", ""},       {"train.loss", "kd"}};
    int n = 0, found = 0;
    char value[12];
    EXPECT_OK(load(VQ_QUANTIZE,
                   QUANTIZE "--text u --lr 0.1 --seed 9007199254740993 --sym --calib.mode c4"));
    assert_int_equal(config.text.n, 2);
    config.text.item[1] = "\"u\"";
    for (; vq_config_key(n); n++) {
        vq_config_value(&config, n, value, sizeof value);
        for (int i = 0; i < VQ_COUNT(expected); i++) {
            if (strcmp(vq_config_key(n), expected[i].key) != 0) continue;
            assert_string_equal(value, expected[i].value);
            found++;
        }
    }
    assert_int_equal(found, VQ_COUNT(expected));
}

static void written_yaml_reads_back(void **state)
{
    (void)state;
    char text[512], *file;
    size_t bytes;
    const char *line[] = {"vqround", "quantize", "--text", "it's \"x\"\n#"};
    vq_config back;
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--lr 0.1 --train.kd-alpha 0.333333333333333314829616256 "
                                         "--seed 9007199254740993 --sym --calib.mode c4"));
    config.text.item[0] = "a \"quoted\"\tC:\\ \xc3\xa4";
    EXPECT_OK(vq_config_write_yaml(&config, "config-written.yaml", VQ_COUNT(line), line));
    EXPECT_OK(vq_file_read(&arena, "config-written.yaml", &file, &bytes));
    assert_non_null(strstr(file, "# vqround " VQ_VERSION "\n# command: vqround quantize --text "));
    EXPECT_OK(vq_config_defaults(&arena, &back));
    EXPECT_OK(vq_config_read_yaml(&arena, "config-written.yaml", &back));
    assert_int_equal(vq_config_diff(&config, &back, UINT_MAX, text, sizeof text), 0);
    assert_string_equal(text, "");
    assert_string_equal(back.text.item[0], config.text.item[0]);
    assert_string_equal(back.out, "r");
    assert_true(back.train.kd_alpha == config.train.kd_alpha);
    assert_true(back.seed == INT64_C(9007199254740993));
    assert_int_equal(back.calib.mode, VQ_CALIB_C4);
    EXPECT_ERROR(vq_config_write_yaml(&config, "no-dir/c.yaml", 0, NULL), VQ_EFILE, "no-dir");
}

static void phases_know_their_keys(void **state)
{
    (void)state;
    char text[512];
    vq_config a, b;
    EXPECT_OK(vq_config_defaults(&arena, &a));
    EXPECT_OK(vq_config_defaults(&arena, &b));
    b.bits = 3, b.train.lr = 0.5, b.threads = 4, b.checkpoint.every = 5, b.model = "elsewhere";
    assert_int_equal(vq_config_diff(&a, &b, VQ_PHASE_TOKENS, text, sizeof text), 0);
    assert_int_equal(vq_config_diff(&a, &b, VQ_PHASE_INIT, text, sizeof text), 1);
    assert_string_equal(text, "bits (4, now 3)");
    assert_int_equal(vq_config_diff(&a, &b, VQ_PHASE_TRAIN, text, sizeof text), 2);
    assert_string_equal(text, "bits (4, now 3), train.lr (0.01, now 0.5)");
    assert_int_equal(vq_config_diff(&a, &b, VQ_PHASE_TRAIN, text, 8), 2);
    assert_string_equal(text, "bits (4");
    assert_true(vq_config_phase_hash(&a, VQ_PHASE_TEACHER) ==
                vq_config_phase_hash(&b, VQ_PHASE_TEACHER));
    assert_true(vq_config_phase_hash(&a, VQ_PHASE_INIT) != vq_config_phase_hash(&b, VQ_PHASE_INIT));
    b = a;
    b.seqlen = 16;
    for (unsigned phase = VQ_PHASE_TOKENS; phase <= VQ_PHASE_EVAL; phase *= 2)
        assert_int_equal(vq_config_diff(&a, &b, phase, text, sizeof text), phase != VQ_PHASE_INIT);
    b = a;
    b.skip = (vq_list){0};
    b.sym = true;
    assert_int_equal(vq_config_diff(&a, &b, VQ_PHASE_INIT, text, sizeof text), 2);
    assert_string_equal(text, "sym (false, now true), skip ([\"lm_head\"], now [])");
}

static void check_printed(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("\"%s\" is not in: %s", part, text);
}

static void help_and_reference_come_from_the_table(void **state)
{
    (void)state;
    static char text[1 << 16];
    FILE *file = fmemopen(text, sizeof text, "w");
    vq_config_print_help(file, 0);
    vq_config_print_help(file, VQ_QUANTIZE);
    fclose(file);
    check_printed(text, "  inspect ");
    check_printed(text, "Usage: vqround quantize --model DIR");
    check_printed(text, "--bits 2|3|4|8 ");
    check_printed(text, "(default 2048 tokens)");
    check_printed(text, "--[no-]sym");
    check_printed(text, "  --gptq.static-groups auto|on|off\n");
    check_printed(text, "windows in a step (default 1 window)");
    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        assert_true(end - line <= 100);

    file = fmemopen(text, sizeof text, "w");
    vq_config_print_help(file, VQ_INSPECT);
    fclose(file);
    assert_null(strstr(text, "--bits"));
    check_printed(text, "--[no-]json");

    file = fmemopen(text, sizeof text, "w");
    vq_config_print_reference(file, VQ_MARKDOWN);
    fclose(file);
    check_printed(
        text, "| `train.lr` | `--lr X` | Adam's learning rate (default 0.01) | quantize, plan |");
    check_printed(text, "`--calib.mode wikitext2\\|c4`");

    file = fmemopen(text, sizeof text, "w");
    vq_config_print_reference(file, VQ_ROFF);
    fclose(file);
    check_printed(text, ".TP\n\\fB\\-\\-batch\\-size\\fR \\fIN\\fR (train.batch)\n");
}

/* A recipe takes the place of the defaults; the file and the command line beat it. */
static void recipes_set_defaults(void **state)
{
    (void)state;
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--recipe fast"));
    assert_int_equal(config.train.steps, 400);
    assert_int_equal(config.train.rounding, VQ_ROUNDING_HARD);
    assert_int_equal(config.train.lr_schedule, VQ_LR_COSINE);
    assert_true(config.train.learn_scale && config.kmeans.by_sign);
    assert_int_equal(config.init, VQ_INIT_GPTQ);
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--recipe fast --method rtn"));
    assert_false(vq_config_uses_gptq(&config));
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--recipe fast --steps 50 --no-learn-scale"));
    assert_int_equal(config.train.steps, 50);
    assert_false(config.train.learn_scale);
    assert_true(config.train.lr == 0.02);
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--recipe best"));
    assert_int_equal(config.train.steps, 5000);
    assert_int_equal(config.grid.search, VQ_SEARCH_OUTPUT);
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--recipe paper"));
    assert_int_equal(config.train.steps, 5000);
    assert_true(config.train.lr == 0.01);
    assert_int_equal(config.train.rounding, VQ_ROUNDING_SOFT);
    /* From a file, which beats it too; and the written settings are all of them. */
    EXPECT_OK(vq_file_write("recipe.yaml", "recipe: fast\ntrain: {lr: 0.5}\n", 30));
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--config recipe.yaml --scale-lr 0.25"));
    assert_true(config.train.lr == 0.5 && config.train.scale_lr == 0.25);
    assert_int_equal(config.train.steps, 400);
    EXPECT_OK(vq_config_write_yaml(&config, "recipe.yaml", 0, NULL));
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--config recipe.yaml --recipe paper"));
    EXPECT_OK(load(VQ_QUANTIZE, QUANTIZE "--config recipe.yaml --recipe paper"));
    assert_int_equal(config.train.steps, 400);
    EXPECT_ERROR(load(VQ_QUANTIZE, QUANTIZE "--recipe fast --no-grid.include_zero"),
                 VQ_EUNSUPPORTED, "recipe fast grid.search", "include_zero");
    unlink("recipe.yaml");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_references),
        cmocka_unit_test(yaml_is_nested_or_dotted),
        cmocka_unit_test(wrong_yaml_names_the_line),
        cmocka_unit_test(command_line_beats_file_and_default),
        cmocka_unit_test(wrong_command_lines_name_the_flag),
        cmocka_unit_test(recipes_set_defaults),
        cmocka_unit_test(values_are_listed),
        cmocka_unit_test(written_yaml_reads_back),
        cmocka_unit_test(phases_know_their_keys),
        cmocka_unit_test(help_and_reference_come_from_the_table),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
