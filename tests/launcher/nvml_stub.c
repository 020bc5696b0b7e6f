/* A stand-in for libnvidia-ml.so.1 that says what the file NVML_STUB says at this moment. Its lines are
   "gpu UUID USED_BYTES NAME", below it "process PID BYTES" for each process on it, and "fail FUNCTION ERROR".
   "holder PID BYTES" adds to what a process has, and to what is in use, until that process has ended. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { char uuid[96], name[96]; unsigned long long used; unsigned count; Process processes[64]; } Gpu;

static Gpu gpus[8];
static unsigned count;

static int alive(unsigned pid) {
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 0;
    fclose(file);
    return state && state != 'Z';
}

static void hold(Gpu *gpu, unsigned pid, long long size) {
    Process *process = gpu->processes;
    while (process < gpu->processes + gpu->count && process->pid != pid) process++;
    if (process == gpu->processes + gpu->count) gpu->count++;
    process->pid = pid;
    process->used += size;
    gpu->used += size;
}

static int look(const char *function) {
    char line[512], word[96];
    int error = SUCCESS, code;
    unsigned pid;
    long long size;
    FILE *file = fopen(getenv("NVML_STUB"), "r");
    if (!file) return NOT_FOUND;
    memset(gpus, 0, sizeof gpus);
    count = 0;
    while (fgets(line, sizeof line, file)) {
        Gpu *last = &gpus[count ? count - 1 : 0];
        Process *process = &last->processes[last->count];
        if (sscanf(line, "gpu %95s %llu %95[^\n]", gpus[count].uuid, &gpus[count].used, gpus[count].name) == 3) count++;
        else if (sscanf(line, "process %u %llu", &process->pid, &process->used) == 2) last->count++;
        else if (sscanf(line, "holder %u %lld", &pid, &size) == 2) { if (alive(pid)) hold(last, pid, size); }
        else if (sscanf(line, "fail %95s %d", word, &code) == 2 && !strcmp(word, function)) error = code;
    }
    fclose(file);
    return error;
}

#define LOOK int error = look(__func__); if (error) return error
#define GPU(handle) (&gpus[(size_t)(handle) - 1])

const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "some error"; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return look(__func__); }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *result) { LOOK; *result = count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    LOOK;
    if (index >= count) return NOT_FOUND;
    *handle = (void *)(size_t)(index + 1);
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *gpu, char *text, unsigned size) { LOOK; snprintf(text, size, "%s", GPU(gpu)->uuid); return SUCCESS; }
int nvmlDeviceGetName(void *gpu, char *text, unsigned size) { LOOK; snprintf(text, size, "%s", GPU(gpu)->name); return SUCCESS; }
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory) {
    LOOK;
    memory->total = 1ULL << 36;
    memory->used = GPU(gpu)->used;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
#ifndef WITHOUT_PROCESSES
int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *size, Process *processes) {
    LOOK;
    unsigned room = *size, found = *size = GPU(gpu)->count;
    if (found > room) return INSUFFICIENT_SIZE;
    if (found) memcpy(processes, GPU(gpu)->processes, found * sizeof *processes);
    return SUCCESS;
}
#endif
