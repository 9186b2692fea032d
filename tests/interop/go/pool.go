package main

// Operations on Pulse's worker pool: nodes, a worker whose jobs do nothing, dispatch and stop, and the loops that the
// benchmark times. The loops run here, so that the line protocol is not what is measured.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"goa.design/pulse/pool"
)

func init() {
	register("pool.node", poolNode)
	register("pool.node.close", poolNodeClose)
	register("pool.worker", poolWorker)
	register("pool.dispatch", poolDispatch)
	register("pool.stop", poolStop)
	register("pool.running", poolRunning)
	register("pool.bench.dispatch", poolBenchDispatch)
	register("pool.bench.stop", poolBenchStop)
	register("pool.bench.settle", poolBenchSettle)
}

// idleJobs is a handler whose jobs are started and stopped and do nothing in between.
type idleJobs struct{ running atomic.Int64 }

// Start implements pool.JobHandler.
func (h *idleJobs) Start(*pool.Job) error {
	h.running.Add(1)
	return nil
}

// Stop implements pool.JobHandler.
func (h *idleJobs) Stop(string) error {
	h.running.Add(-1)
	return nil
}

var (
	poolNodes   handles[*pool.Node]
	poolWorkers handles[*idleJobs]
)

// poolArgs are the arguments of all operations here; each reads those that it needs.
type poolArgs struct {
	Handle     string `json:"handle"`
	Name       string `json:"name"`
	ClientOnly bool   `json:"client_only"`
	QueuedMax  int    `json:"queued_max"`
	Key        string `json:"key"`
	Payload    Text   `json:"payload"`

	First   int64 `json:"first"`
	Jobs    int64 `json:"jobs"`
	Callers int   `json:"callers"`
	Running int64 `json:"running"`
}

func poolArguments(raw json.RawMessage) (*poolArgs, error) {
	args := &poolArgs{}
	return args, json.Unmarshal(raw, args)
}

// poolArgsAndNode reads the arguments and finds the node that they name.
func poolArgsAndNode(raw json.RawMessage) (*poolArgs, *pool.Node, error) {
	args, err := poolArguments(raw)
	if err != nil {
		return nil, nil, err
	}
	node, err := poolNodes.get(args.Handle)
	return args, node, err
}

func poolNode(ctx context.Context, raw json.RawMessage) (any, error) {
	args, err := poolArguments(raw)
	if err != nil {
		return nil, err
	}
	var chosen []pool.NodeOption
	if args.ClientOnly {
		chosen = append(chosen, pool.WithClientOnly())
	}
	if args.QueuedMax > 0 {
		chosen = append(chosen, pool.WithMaxQueuedJobs(args.QueuedMax))
	}
	node, err := pool.AddNode(ctx, args.Name, client(), chosen...)
	if err != nil {
		return nil, err
	}
	poolNodes.put(args.Handle, node)
	return nil, nil
}

func poolNodeClose(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	if _, err := poolNodes.drop(args.Handle); err != nil {
		return nil, err
	}
	return nil, node.Close(ctx)
}

// poolWorker adds a worker to a node; pool.running and pool.bench.settle ask for it by the node's handle.
func poolWorker(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	jobs := &idleJobs{}
	if _, err := node.AddWorker(ctx, jobs); err != nil {
		return nil, err
	}
	poolWorkers.put(args.Handle, jobs)
	return nil, nil
}

func poolDispatch(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	return nil, node.DispatchJob(ctx, args.Key, []byte(args.Payload))
}

func poolStop(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	return nil, node.StopJob(ctx, args.Key)
}

func poolRunning(_ context.Context, raw json.RawMessage) (any, error) {
	args, err := poolArguments(raw)
	if err != nil {
		return nil, err
	}
	jobs, err := poolWorkers.get(args.Handle)
	if err != nil {
		return nil, err
	}
	return jobs.running.Load(), nil
}

// forEachJob calls work for the numbers first .. first+jobs-1 from several goroutines, each waiting for its own call.
func forEachJob(args *poolArgs, work func(number int64) error) error {
	var next atomic.Int64
	next.Store(args.First)
	failures := make(chan error, args.Callers)
	var group sync.WaitGroup
	for range args.Callers {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := next.Add(1) - 1; number < args.First+args.Jobs; number = next.Add(1) - 1 {
				if err := work(number); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

// lostAfter is how long a dispatch may take. Pulse notes who waits for an answer after it has sent the question; when the
// answer is faster than that it is dropped, and the caller waits for 40 seconds. Those are counted as lost.
const lostAfter = 10 * time.Second

// poolBenchDispatch dispatches jobs and answers the seconds that all took, the latencies of the single calls, and how
// many never heard their answer.
func poolBenchDispatch(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	latencies := make([]float64, args.Jobs)
	payload := []byte(args.Payload)
	var lost atomic.Int64
	begin := time.Now()
	err = forEachJob(args, func(number int64) error {
		limited, cancel := context.WithTimeout(ctx, lostAfter)
		defer cancel()
		called := time.Now()
		err := node.DispatchJob(limited, "job-"+strconv.FormatInt(number, 10), payload)
		latencies[number-args.First] = float64(time.Since(called).Microseconds()) / 1000
		if errors.Is(err, context.DeadlineExceeded) {
			lost.Add(1)
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	seconds := time.Since(begin).Seconds()
	sort.Float64s(latencies)
	last := len(latencies) - 1
	return map[string]float64{
		"seconds": seconds, "p50_ms": latencies[last/2], "p99_ms": latencies[last*99/100], "lost": float64(lost.Load()),
	}, nil
}

// poolBenchStop asks for the end of jobs. Pulse does not wait for it; pool.bench.settle on the worker's side does.
func poolBenchStop(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	return nil, forEachJob(args, func(number int64) error {
		return node.StopJob(ctx, "job-"+strconv.FormatInt(number, 10))
	})
}

// poolBenchSettle waits until so many jobs run on a worker, and until the maps of its node say so too.
func poolBenchSettle(ctx context.Context, raw json.RawMessage) (any, error) {
	args, node, err := poolArgsAndNode(raw)
	if err != nil {
		return nil, err
	}
	jobs, err := poolWorkers.get(args.Handle)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for jobs.running.Load() != args.Running || int64(len(node.JobKeys())) != args.Running {
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d jobs run (%d in the map), %d should",
				jobs.running.Load(), len(node.JobKeys()), args.Running)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil, nil
}
