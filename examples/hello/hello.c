/* Says where it runs. Built to hello.wasm by build.sh. */
#include <stdio.h>
#include <stdlib.h>

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "?";
}

int main(int argc, char **argv) {
    printf("Hello from partition %s of %s", variable("BACALHAU_PARTITION_INDEX"),
           variable("BACALHAU_PARTITION_COUNT"));
    for (int i = 1; i < argc; i++) {
        printf(" %s", argv[i]);
    }
    printf("\n");
    return 0;
}
