// SPDX-License-Identifier: BSL-1.0

// go_bench CASE [OPTION...]: what conclave_bench does, on etcd's Go packages: clientv3, concurrency and recipes.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/clientv3/namespace"
	recipe "go.etcd.io/etcd/contrib/recipes"
	"google.golang.org/grpc"
)

var (
	bench      string
	endpoints  = flag.String("endpoints", environment("ETCD_ENDPOINTS", "127.0.0.1:2379"), "")
	count      = flag.Int("count", 1000, "operations; waiters in waiters")
	valueSize  = flag.Int("value-size", 100, "bytes")
	warmup     = flag.Int("warmup", 100, "operations before what is measured")
	depth      = flag.Int("depth", 64, "calls under way, or locks at a time")
	contenders = flag.Int("contenders", 4, "sessions")
	processes  = flag.Int("processes", 0, "zero: all in this one")
	producers  = flag.Int("producers", 1, "")
	consumers  = flag.Int("consumers", 1, "")
	locks      = flag.Int("locks", 1, "over which the waiters are spread")
	_          = flag.Int("sessions", 1, "ignored: a waiter of a lock needs a session of its own")
	noise      = flag.Int("noise", 0, "unrelated writes a second meanwhile")
	limit      = flag.Int("limit", 0, "seconds after which no more is counted; zero: none")
	worker     = flag.String("worker", "", "for a process of --processes: the file that all share")
	prefixFlag = flag.String("prefix", "", "the same: the part of the store")
)

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// The times of one machine's processes are compared, as the C++ programs do.
func now() int64 {
	var t [2]int64
	_, _, _ = syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&t)), 0)
	return t[0]*1e9 + t[1]
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "go_bench:", why)
	os.Exit(1)
}

// ---- what a run costs -------------------------------------------------------------------------------------

func cpuSeconds() float64 {
	var use syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &use))
	return float64(use.Utime.Nano()+use.Stime.Nano()) * 1e-9
}

func rssKib() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	check(err)
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	check(err)
	return pages * int64(os.Getpagesize()) / 1024
}

func threads() int {
	tasks, err := os.ReadDir("/proc/self/task")
	check(err)
	return len(tasks)
}

type counters struct{ proposals, rpcs, cpu float64 }

func readCounters() (out counters) {
	first := strings.Split(*endpoints, ",")[0]
	if !strings.HasPrefix(first, "http") {
		first = "http://" + first
	}
	response, err := (&http.Client{Timeout: 10 * time.Second}).Get(first + "/metrics")
	check(err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		value := func() float64 {
			number, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64)
			check(err)
			return number
		}
		switch {
		case strings.HasPrefix(line, "etcd_server_proposals_committed_total "):
			out.proposals += value()
		case strings.HasPrefix(line, "grpc_server_started_total{"):
			out.rpcs += value()
		case strings.HasPrefix(line, "process_cpu_seconds_total "):
			out.cpu += value()
		}
	}
	_, _ = io.Copy(io.Discard, response.Body)
	return out
}

type run struct {
	sync.Mutex
	running             bool
	before, after       counters
	cpu                 float64
	rss                 int64
	threads             int
	begin, end, until   int64
	latencies           []int64
	extra               string
	begun, ended, total int
	enough              chan struct{}
}

func newRun() *run {
	r := &run{total: *warmup + *count, enough: make(chan struct{})}
	r.latencies = make([]int64, 0, *count)
	return r
}

func (r *run) start() {
	r.before = readCounters()
	r.cpu = cpuSeconds()
	r.begin = now()
	r.until = math.MaxInt64
	if *limit != 0 {
		r.until = r.begin + int64(*limit)*1e9
	}
	r.running = true
}

func (r *run) add(since, until int64) {
	// One that ended while the counters were read belongs to what was before.
	if !r.running || until < r.begin || until > r.until {
		return
	}
	if until > r.end {
		r.end = until
	}
	r.latencies = append(r.latencies, until-since)
}

func (r *run) stop() {
	if !r.running {
		return
	}
	r.running = false
	if now() >= r.until {
		r.end = r.until
	}
	r.cpu = cpuSeconds() - r.cpu
	r.rss = rssKib()
	r.threads = threads()
	r.after = readCounters()
}

// Whether another operation may begin.
func (r *run) beginOne() bool {
	r.Lock()
	defer r.Unlock()
	if r.over() || r.begun == r.total {
		return false
	}
	r.begun++
	return true
}

func (r *run) over() bool {
	select {
	case <-r.enough:
		return true
	default:
		return false
	}
}

func (r *run) endOne(since int64) {
	until := now()
	r.Lock()
	defer r.Unlock()
	if r.over() {
		return
	}
	if r.ended >= *warmup {
		r.add(since, until)
	}
	r.ended++
	if r.ended == *warmup {
		r.start()
	}
	if r.ended == r.total || (r.ended > *warmup && now() >= r.until) {
		r.stop()
		close(r.enough)
	}
}

func (r *run) print() {
	n := len(r.latencies)
	if n == 0 {
		fail("nothing was done")
	}
	sort.Slice(r.latencies, func(a, b int) bool { return r.latencies[a] < r.latencies[b] })
	seconds := float64(r.end-r.begin) * 1e-9
	at := func(part float64) float64 {
		return float64(r.latencies[int(math.Ceil(part*float64(n)))-1]) * 1e-3
	}
	each := func(value float64) float64 { return value / float64(n) }
	fmt.Printf("{\"bench\": \"%s\", \"impl\": \"go\", \"n\": %d, \"seconds\": %.6f, \"per_s\": %.1f, "+
		"\"p50_us\": %.1f, \"p99_us\": %.1f, \"cpu_us_per_op\": %.1f, \"rss_kib\": %d, \"threads\": %d, "+
		"\"proposals_per_op\": %.3f, \"rpcs_per_op\": %.3f, \"etcd_cpu_us_per_op\": %.1f%s}\n",
		bench, n, seconds, float64(n)/seconds, at(0.5), at(0.99), each(r.cpu*1e6), r.rss, r.threads,
		each(r.after.proposals-r.before.proposals), each(r.after.rpcs-r.before.rpcs),
		each((r.after.cpu-r.before.cpu)*1e6), r.extra)
}

func (r *run) note(name string, value float64) {
	r.extra += fmt.Sprintf(", \"%s\": %.1f", name, value)
}

// ---- the store --------------------------------------------------------------------------------------------

var ctx = context.Background()

func connect(prefix string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(*endpoints, ","), DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()}}) // no server is an error, not a wait
	check(err)
	client.KV = namespace.NewKV(client.KV, prefix)
	client.Watcher = namespace.NewWatcher(client.Watcher, prefix)
	client.Lease = namespace.NewLease(client.Lease, prefix)
	return client
}

func openSession(client *clientv3.Client) *concurrency.Session {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(60))
	check(err)
	return session
}

func openSessions(client *clientv3.Client, many int) []*concurrency.Session {
	out := make([]*concurrency.Session, many)
	parallel(many, 64, func(i int) { out[i] = openSession(client) })
	return out
}

func closeSessions(all []*concurrency.Session) {
	parallel(len(all), 64, func(i int) { check(all[i].Close()) })
}

// Does `work` for each number below `many`, `width` at a time.
func parallel(many, width int, work func(int)) {
	var next int64 = -1
	side(width, func(int) {
		for i := int(atomic.AddInt64(&next, 1)); i < many; i = int(atomic.AddInt64(&next, 1)) {
			work(i)
		}
	})
}

func side(many int, work func(int)) {
	var all sync.WaitGroup
	for i := 0; i < many; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			work(i)
		}(i)
	}
	all.Wait()
}

func value() string { return strings.Repeat("x", *valueSize) }

func makeItem(number int) string {
	out := fmt.Sprintf("%d %d ", number, now())
	if len(out) < *valueSize {
		out += strings.Repeat("x", *valueSize-len(out))
	}
	return out
}

func readItem(text string) (number int, made int64) {
	fields := strings.Fields(text)
	number, err := strconv.Atoi(fields[0])
	check(err)
	made, err = strconv.ParseInt(fields[1], 10, 64)
	check(err)
	return number, made
}

// Each item once.
type eachOnce struct {
	seen  []int32
	taken int64
}

func (e *eachOnce) take(number int) {
	if number >= len(e.seen) {
		fail("an item was never enqueued")
	}
	if atomic.SwapInt32(&e.seen[number], 1) != 0 {
		fail("an item came twice")
	}
	atomic.AddInt64(&e.taken, 1)
}

func (e *eachOnce) requireAll() {
	if *limit == 0 && int(e.taken) != len(e.seen) {
		fail("an item was lost")
	}
}

// Mutual exclusion, counted.
type exclusion struct{ inside int32 }

func (e *exclusion) enter() {
	if atomic.AddInt32(&e.inside, 1) != 1 {
		fail("two holders of one lock at a time")
	}
}
func (e *exclusion) leave() { atomic.AddInt32(&e.inside, -1) }

// ---- puts -------------------------------------------------------------------------------------------------

const differentKeys = 4096

func putAtDepth(client *clientv3.Client, r *run, width int) {
	text := value()
	if *warmup == 0 {
		r.start()
	}
	var next int64
	side(width, func(int) {
		for r.beginOne() {
			key := "key/" + strconv.Itoa(int(atomic.AddInt64(&next, 1))%differentKeys)
			since := now()
			_, err := client.Put(ctx, key, text)
			check(err)
			r.endOne(since)
		}
	})
	found, err := client.Get(ctx, "key/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	check(err)
	want := r.begun
	if want > differentKeys {
		want = differentKeys
	}
	if int(found.Count) != want {
		fail("not every key is there that was put")
	}
}

// ---- locks ------------------------------------------------------------------------------------------------

func loneLocker(session *concurrency.Session, name string, r *run) {
	mutex := concurrency.NewMutex(session, name)
	var last int64
	for r.beginOne() {
		since := now()
		check(mutex.Lock(ctx))
		if mutex.Header().Revision <= last {
			fail("a token did not grow")
		}
		last = mutex.Header().Revision
		check(mutex.Unlock(ctx))
		r.endOne(since)
	}
}

func lockUncontended(client *clientv3.Client, r *run) {
	sessions := openSessions(client, 1)
	loneLocker(sessions[0], "lock", r)
	closeSessions(sessions)
}

func lockMany(client *clientv3.Client, r *run) {
	sessions := openSessions(client, 1)
	side(*depth, func(i int) { loneLocker(sessions[0], "lock/"+strconv.Itoa(i), r) })
	closeSessions(sessions)
}

func lockContended(client *clientv3.Client, r *run) {
	sessions := openSessions(client, *contenders)
	var inside exclusion
	side(*contenders, func(i int) {
		mutex := concurrency.NewMutex(sessions[i], "lock")
		for r.beginOne() {
			since := now()
			check(mutex.Lock(ctx))
			inside.enter()
			inside.leave()
			r.endOne(since)
			check(mutex.Unlock(ctx))
		}
	})
	closeSessions(sessions)
}

// Two mutexes of one session do not exclude each other: the goroutines need a lock of their own as well.
func lockSharedSession(client *clientv3.Client, r *run) {
	sessions := openSessions(client, 1)
	mutex := concurrency.NewMutex(sessions[0], "lock")
	var local sync.Mutex
	var inside exclusion
	side(*contenders, func(int) {
		for r.beginOne() {
			since := now()
			local.Lock()
			check(mutex.Lock(ctx))
			inside.enter()
			inside.leave()
			r.endOne(since)
			check(mutex.Unlock(ctx))
			local.Unlock()
		}
	})
	closeSessions(sessions)
}

func waiters(client *clientv3.Client, r *run) {
	holder := openSession(client)
	held := make([]*concurrency.Mutex, *locks)
	parallel(*locks, 64, func(i int) {
		held[i] = concurrency.NewMutex(holder, "lock/"+strconv.Itoa(i))
		check(held[i].Lock(ctx))
	})
	many := 1
	if *locks < *count {
		many = *count
	}
	inside := make([]exclusion, *locks)
	// In Go a session of a waiter is a part of what the waiter costs.
	var sessions []*concurrency.Session
	shared := openSession(client)
	rssBefore, threadsBefore, since := rssKib(), threads(), now()
	if many > 1 {
		sessions = openSessions(client, many)
	} else {
		sessions = []*concurrency.Session{shared}
	}
	var all sync.WaitGroup
	for i := 0; i < *count; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			lock := i % *locks
			mutex := concurrency.NewMutex(sessions[i%len(sessions)], "lock/"+strconv.Itoa(lock))
			check(mutex.Lock(ctx))
			r.Lock()
			r.add(r.begin, now())
			r.Unlock()
			inside[lock].enter()
			inside[lock].leave()
			check(mutex.Unlock(ctx))
		}(i)
	}
	for {
		found, err := client.Get(ctx, "lock/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		check(err)
		if int(found.Count) == *locks+*count {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	// The last of them may not have begun to watch yet.
	time.Sleep(200 * time.Millisecond)
	standing := now() - since
	rssAfter, threadsAfter := rssKib(), threads()
	r.start()
	parallel(*locks, 64, func(i int) { check(held[i].Unlock(ctx)) })
	all.Wait()
	r.stop()
	r.note("bytes_each", float64(rssAfter-rssBefore)*1024/float64(*count))
	r.note("extra_threads", float64(threadsAfter-threadsBefore))
	r.note("waiting_rss_kib", float64(rssAfter))
	r.note("enter_seconds", float64(standing)*1e-9)
	closeSessions(append(sessions, holder))
}

func handoff(client *clientv3.Client, r *run) {
	sessions := openSessions(client, 2)
	var inside exclusion
	var released int64
	side(2, func(i int) {
		mutex := concurrency.NewMutex(sessions[i], "lock")
		for !r.over() {
			check(mutex.Lock(ctx))
			inside.enter()
			if released != 0 {
				r.endOne(released)
			}
			for !r.over() {
				found, err := client.Get(ctx, "lock/", clientv3.WithPrefix(), clientv3.WithCountOnly())
				check(err)
				if found.Count == 2 {
					break
				}
			}
			inside.leave()
			released = now()
			check(mutex.Unlock(ctx))
		}
	})
	closeSessions(sessions)
}

// ---- queues -----------------------------------------------------------------------------------------------

func enqueue(client *clientv3.Client, r *run) {
	queue := recipe.NewQueue(client, "queue")
	var next int64 = -1
	side(*producers, func(int) {
		for r.beginOne() {
			text := makeItem(int(atomic.AddInt64(&next, 1)))
			since := now()
			check(queue.Enqueue(text))
			r.endOne(since)
		}
	})
	found, err := client.Get(ctx, "queue", clientv3.WithPrefix(), clientv3.WithCountOnly())
	check(err)
	if found.Count != next+1 {
		fail("not every item is in the queue")
	}
}

// Takes until everything has been taken. Who waits for what does not come is left behind.
func consume(r *run, dequeue func() (string, error), fromMaking, ordered bool, items *eachOnce,
	taken func()) {
	last := -1
	for !r.over() {
		since := now()
		text, err := dequeue()
		check(err)
		number, made := readItem(text)
		items.take(number)
		if ordered && number < last {
			fail("an item came before its turn")
		}
		last = number
		if fromMaking {
			since = made
		}
		r.endOne(since)
		taken()
	}
}

func nothing() {}

func drain(client *clientv3.Client, r *run) {
	total := *warmup + *count
	filling := recipe.NewQueue(client, "queue")
	if *consumers == 1 {
		for i := 0; i < total; i++ {
			check(filling.Enqueue(makeItem(i)))
		}
	} else {
		parallel(total, 64, func(i int) { check(filling.Enqueue(makeItem(i))) })
	}
	items := &eachOnce{seen: make([]int32, total)}
	for i := 0; i < *consumers; i++ {
		queue := recipe.NewQueue(client, "queue")
		go consume(r, queue.Dequeue, false, *consumers == 1, items, nothing)
	}
	<-r.enough
	items.requireAll()
}

func steadyQueue(client *clientv3.Client, r *run) {
	total := *warmup + *count
	items := &eachOnce{seen: make([]int32, total)}
	for i := 0; i < *consumers; i++ {
		queue := recipe.NewQueue(client, "queue")
		go consume(r, queue.Dequeue, true, false, items, nothing)
	}
	var next int64 = -1
	for i := 0; i < *producers; i++ {
		go func() {
			queue := recipe.NewQueue(client, "queue")
			for number := atomic.AddInt64(&next, 1); number < int64(total) && !r.over(); number = atomic.AddInt64(&next, 1) {
				check(queue.Enqueue(makeItem(int(number))))
			}
		}()
	}
	<-r.enough
	items.requireAll()
}

const priorities = 10

func priorityDrain(client *clientv3.Client, r *run) {
	total := *warmup + *count
	share := (total + priorities - 1) / priorities
	side(priorities, func(priority int) {
		queue := recipe.NewPriorityQueue(client, "queue")
		for number := priority * share; number < (priority+1)*share && number < total; number++ {
			check(queue.Enqueue(makeItem(number), uint16(priority)))
		}
	})
	items := &eachOnce{seen: make([]int32, total)}
	for i := 0; i < *consumers; i++ {
		queue := recipe.NewPriorityQueue(client, "queue")
		go consume(r, queue.Dequeue, false, *consumers == 1, items, nothing)
	}
	<-r.enough
	items.requireAll()
}

func dequeueLatency(client *clientv3.Client, r *run) {
	total := *warmup + *count
	items := &eachOnce{seen: make([]int32, total)}
	queue := recipe.NewQueue(client, "queue")
	delivered := make(chan struct{}, 1)
	go consume(r, queue.Dequeue, true, false, items, func() { delivered <- struct{}{} })
	for i := 0; i < total && !r.over(); i++ {
		// As long as it takes etcd's slow watches to catch up.
		time.Sleep(110 * time.Millisecond)
		check(queue.Enqueue(makeItem(i)))
		<-delivered
	}
	items.requireAll()
}

// ---- several processes ------------------------------------------------------------------------------------

// Memory that all processes of a run share: counters, then three words for each operation.
const (
	isReady = iota
	isGo
	isStop
	isInside
	isBegun
	isEnded
	isCpuUs
	isRssKib
	isThreads
	words
)

type common []int64

func mapCommon(file string, operations int) common {
	size := (words + 3*operations) * 8
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	check(err)
	check(f.Truncate(int64(size)))
	memory, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(err)
	return unsafe.Slice((*int64)(unsafe.Pointer(&memory[0])), words+3*operations)
}

func (c common) add(which int, by int64) int64 { return atomic.AddInt64(&c[which], by) }
func (c common) get(which int) int64           { return atomic.LoadInt64(&c[which]) }

func (c common) end(since int64) {
	i := c.add(isEnded, 1) - 1
	if i < int64(*count) {
		c[words+3*i+1] = since
		c[words+3*i+2] = now()
	}
	if i+1 >= int64(*count) {
		atomic.StoreInt64(&c[isStop], 1)
	}
}

func (c common) waitForGo() {
	c.add(isReady, 1)
	for c.get(isGo) == 0 {
		time.Sleep(time.Millisecond)
	}
}

func workerMain(shared common, prefix string) {
	client := connect(prefix)
	switch bench {
	case "lock-contended":
		session := openSession(client)
		mutex := concurrency.NewMutex(session, "lock")
		check(mutex.Lock(ctx))
		check(mutex.Unlock(ctx))
		shared.waitForGo()
		for shared.get(isStop) == 0 {
			since := now()
			check(mutex.Lock(ctx))
			if shared.add(isInside, 1) != 1 {
				fail("two processes held one lock")
			}
			shared.add(isInside, -1)
			shared.end(since)
			check(mutex.Unlock(ctx))
		}
		check(session.Close())
	case "queue":
		shared.waitForGo()
		for i := 0; i < *consumers; i++ {
			go func() {
				queue := recipe.NewQueue(client, "queue")
				for shared.get(isStop) == 0 {
					text, err := queue.Dequeue()
					check(err)
					number, made := readItem(text)
					if atomic.SwapInt64(&shared[words+3*number], 1) != 0 {
						fail("an item came twice")
					}
					shared.end(made)
				}
			}()
		}
		for i := 0; i < *producers; i++ {
			go func() {
				queue := recipe.NewQueue(client, "queue")
				for shared.get(isStop) == 0 {
					number := shared.add(isBegun, 1) - 1
					if number >= int64(*count) {
						return
					}
					check(queue.Enqueue(makeItem(int(number))))
				}
			}()
		}
		for shared.get(isStop) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	shared.add(isCpuUs, int64(cpuSeconds()*1e6))
	shared.add(isRssKib, rssKib())
	shared.add(isThreads, int64(threads()))
}

func runProcesses(r *run, prefix string) {
	folder, err := os.MkdirTemp("", "go_bench-")
	check(err)
	defer os.RemoveAll(folder)
	file := filepath.Join(folder, "common")
	shared := mapCommon(file, *count)
	var children []*exec.Cmd
	for i := 0; i < *processes; i++ {
		child := exec.Command("/proc/self/exe", append(append([]string{}, os.Args[1:]...), "--worker", file,
			"--prefix", prefix)...)
		child.Stderr = os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		check(child.Start())
		children = append(children, child)
	}
	failed := make(chan error, len(children))
	for _, child := range children {
		go func(child *exec.Cmd) { failed <- child.Wait() }(child)
	}
	ended := 0
	look := func() {
		select {
		case err := <-failed:
			check(err)
			ended++
		default:
		}
		time.Sleep(time.Millisecond)
	}
	for shared.get(isReady) < int64(*processes) {
		look()
	}
	r.start()
	atomic.StoreInt64(&shared[isGo], 1)
	for shared.get(isStop) == 0 {
		look()
		if now() >= r.until {
			atomic.StoreInt64(&shared[isStop], 1)
		}
	}
	r.stop()
	for ended < len(children) {
		look()
	}
	r.cpu = float64(shared.get(isCpuUs)) * 1e-6
	r.rss = shared.get(isRssKib)
	r.threads = int(shared.get(isThreads))
	done := shared.get(isEnded)
	if done > int64(*count) {
		done = int64(*count)
	}
	if done < int64(*count) && *limit == 0 {
		fail("not everything was done")
	}
	r.running = true
	r.end = r.begin
	for i := int64(0); i < done; i++ {
		r.add(shared[words+3*i+1], shared[words+3*i+2])
	}
	r.running = false
}

func makeNoise() {
	client := connect("bench/noise/")
	text := value()
	next := time.Now()
	for i := 0; ; i++ {
		next = next.Add(time.Second / time.Duration(*noise))
		_, err := client.Put(ctx, "noise/"+strconv.Itoa(i%100), text)
		check(err)
		time.Sleep(time.Until(next))
	}
}

// ---- the program ------------------------------------------------------------------------------------------

func main() {
	cases := map[string]func(*clientv3.Client, *run){
		"put":                 func(c *clientv3.Client, r *run) { putAtDepth(c, r, 1) },
		"put-pipelined":       func(c *clientv3.Client, r *run) { putAtDepth(c, r, *depth) },
		"lock-uncontended":    lockUncontended,
		"lock-contended":      lockContended,
		"lock-shared-session": lockSharedSession,
		"lock-many":           lockMany,
		"waiters":             waiters,
		"handoff":             handoff,
		"enqueue":             enqueue,
		"drain":               drain,
		"queue":               steadyQueue,
		"priority-drain":      priorityDrain,
		"dequeue-latency":     dequeueLatency,
	}
	if len(os.Args) > 1 {
		bench = os.Args[1]
		check(flag.CommandLine.Parse(os.Args[2:]))
	}
	if bench == "noise" {
		makeNoise()
	}
	work, known := cases[bench]
	if !known || flag.NArg() != 0 {
		fmt.Fprintln(os.Stderr, "usage: go_bench CASE [OPTION...]")
		os.Exit(2)
	}
	if *worker != "" {
		workerMain(mapCommon(*worker, *count), *prefixFlag)
		return
	}
	if *noise != 0 || *processes != 0 {
		runtime.LockOSThread() // children end with the thread that started them
	}
	if *noise != 0 {
		child := exec.Command("/proc/self/exe", "noise", "--noise", strconv.Itoa(*noise), "--endpoints", *endpoints,
			"--value-size", strconv.Itoa(*valueSize))
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		check(child.Start())
		defer func() { _ = child.Process.Kill() }()
	}
	prefix := fmt.Sprintf("bench/%d-%d/", time.Now().UnixNano(), os.Getpid())
	r := newRun()
	if *processes != 0 {
		if bench != "lock-contended" && bench != "queue" {
			fail(bench + " has no --processes")
		}
		runProcesses(r, prefix)
	} else {
		client := connect(prefix)
		work(client, r)
		_, err := clientv3.NewKV(client).Delete(ctx, prefix, clientv3.WithPrefix())
		check(err)
	}
	r.print()
}
