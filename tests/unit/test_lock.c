/* test_lock - one of many takes a lock; a holder that is gone or silent loses it, a live one does
 * not. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "expect.h"
#include "fileio.h"
#include "lock.h"

#define N_RACERS 8

static char folder[] = "lock-XXXXXX";

static void sleep_s(double s)
{
    nanosleep(&(struct timespec){(time_t)s, (long)(1e9 * (s - (double)(time_t)s))}, NULL);
}

/* Whether this process gets the lock; it then keeps it in *lock. */
static bool takes(const char *path, double dead_s, vq_lock *lock)
{
    bool taken;
    EXPECT_OK(vq_lock_try(path, dead_s, lock, &taken));
    assert_true(taken == (lock->place[0] != '\0'));
    return taken;
}

static bool other_process_takes(const char *path, double dead_s)
{
    int status;
    const pid_t pid = fork();
    if (pid == 0) {
        vq_lock lock;
        bool taken;
        _exit(vq_lock_try(path, dead_s, &lock, &taken) == VQ_OK && taken);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status) == 1;
}

static void one_of_many_takes_it(void **state)
{
    (void)state;
    pid_t racer[N_RACERS], winner = 0;
    int status;
    for (int i = 0; i < N_RACERS; i++) {
        racer[i] = fork();
        if (racer[i] > 0) continue;
        vq_lock lock;
        bool taken;
        if (vq_lock_try("race", 60, &lock, &taken) != VQ_OK) _exit(1);
        while (taken) pause();
        _exit(0);
    }
    for (int losers = 0; losers < N_RACERS - 1; losers++) {
        const pid_t pid = wait(&status);
        assert_true(pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        for (int i = 0; i < N_RACERS; i++)
            if (racer[i] == pid) racer[i] = 0;
    }
    for (int i = 0; i < N_RACERS; i++)
        if (racer[i]) winner = racer[i];
    assert_false(other_process_takes("race", 60));

    char holder[320], expected[32];
    snprintf(expected, sizeof expected, " process %d", (int)winner);
    assert_non_null(strstr(vq_lock_holder("race", holder), expected));

    /* Killed, it is known to be gone at once. */
    kill(winner, SIGKILL);
    assert_int_equal(waitpid(winner, &status, 0), winner);
    vq_lock lock;
    assert_true(takes("race", 60, &lock));
    vq_lock_free(&lock);
}

static void holder_keeps_it_until_it_frees_it(void **state)
{
    (void)state;
    vq_lock lock;
    assert_true(takes("held", 2.5, &lock));
    sleep_s(4); /* beyond dead_s, but the thread beats */
    assert_false(other_process_takes("held", 2.5));
    vq_lock_free(&lock);
    vq_lock_free(&lock);
    assert_true(other_process_takes("held", 60));
}

static void silent_holder_on_another_machine_loses_it(void **state)
{
    (void)state;
    vq_lock lock;
    const char text[] = "elsewhere 1 1 another/boot\n";
    EXPECT_OK(vq_make_folders("far/7"));
    EXPECT_OK(vq_file_write("far/7/holder", text, sizeof text - 1));
    EXPECT_OK(vq_file_write("far/7/beat", "", 0));
    assert_false(takes("far", 20, &lock));
    const struct timespec old[] = {{time(NULL) - 60, 0}, {time(NULL) - 60, 0}};
    assert_int_equal(utimensat(AT_FDCWD, "far/7/beat", old, 0), 0);
    assert_false(takes("far", 120, &lock));
    assert_true(takes("far", 20, &lock));
    assert_non_null(strstr(lock.place, "far/8"));
    vq_lock_free(&lock);
}

static void bad_places_say_why(void **state)
{
    (void)state;
    vq_lock lock;
    bool taken;
    EXPECT_OK(vq_file_write("file", "x", 1));
    EXPECT_ERROR(vq_lock_try("file/lock", 60, &lock, &taken), VQ_EFILE, "file cannot be made",
                 "it is a file", "Choose");
    assert_false(taken || lock.place[0]);
}

static int enter(void **state)
{
    (void)state;
    return mkdtemp(folder) && chdir(folder) == 0 ? 0 : -1;
}

static int leave(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -r ../%s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_of_many_takes_it),
        cmocka_unit_test(holder_keeps_it_until_it_frees_it),
        cmocka_unit_test(silent_holder_on_another_machine_loses_it),
        cmocka_unit_test(bad_places_say_why),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
