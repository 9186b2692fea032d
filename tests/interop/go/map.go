// The operations of replicated maps: one per method of rmap.Map, named map.<operation>.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"sync"
	"time"

	"goa.design/pulse/rmap"
)

var maps handles[*rmap.Map]

// mapArgs is what any map operation may carry.
type mapArgs struct {
	Handle  string `json:"handle"`
	Name    string `json:"name"`
	TTLms   int64  `json:"ttl_ms"`
	Sliding bool   `json:"sliding"`
	Key     Text   `json:"key"`
	Value   Text   `json:"value"`
	Test    Text   `json:"test"`
	Delta   int    `json:"delta"`
	Items   []Text `json:"items"`
	Keys    []Text `json:"keys"`
	Tests   []Text `json:"tests"`
	benchArgs
}

// mapOperation is an operation on a joined map.
type mapOperation func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error)

func plain(items []Text) []string {
	strings := make([]string, len(items))
	for i, item := range items {
		strings[i] = string(item)
	}
	return strings
}

func texts(items []string) []Text {
	if items == nil {
		return nil
	}
	boxed := make([]Text, len(items))
	for i, item := range items {
		boxed[i] = Text(item)
	}
	return boxed
}

func readMapArgs(raw json.RawMessage) (mapArgs, error) {
	var args mapArgs
	err := json.Unmarshal(raw, &args)
	return args, err
}

func registerMap(op string, run mapOperation) {
	register("map."+op, func(ctx context.Context, raw json.RawMessage) (any, error) {
		args, err := readMapArgs(raw)
		if err != nil {
			return nil, err
		}
		m, err := maps.get(args.Handle)
		if err != nil {
			return nil, err
		}
		return run(ctx, m, args)
	})
}

func mapJoin(ctx context.Context, raw json.RawMessage) (any, error) {
	args, err := readMapArgs(raw)
	if err != nil {
		return nil, err
	}
	var options []rmap.MapOption
	ttl := time.Duration(args.TTLms) * time.Millisecond
	switch {
	case args.TTLms > 0 && args.Sliding:
		options = append(options, rmap.WithSlidingTTL(ttl))
	case args.TTLms > 0:
		options = append(options, rmap.WithTTL(ttl))
	}
	m, err := rmap.Join(ctx, args.Name, client(), options...)
	if err != nil {
		return nil, err
	}
	maps.put(args.Handle, m)
	return m.Len(), nil
}

func mapClose(_ context.Context, raw json.RawMessage) (any, error) {
	args, err := readMapArgs(raw)
	if err != nil {
		return nil, err
	}
	m, err := maps.drop(args.Handle)
	if err != nil {
		return nil, err
	}
	m.Close()
	return nil, nil
}

// mapSubscribe emits an event for every notification until the map is closed.
func mapSubscribe(_ context.Context, m *rmap.Map, args mapArgs) (any, error) {
	notifications := m.Subscribe()
	if notifications == nil {
		return nil, fmt.Errorf("map is closed")
	}
	names := map[rmap.EventKind]string{rmap.EventChange: "change", rmap.EventDelete: "delete", rmap.EventReset: "reset"}
	go func() {
		for kind := range notifications {
			emit("map.event", map[string]any{"handle": args.Handle, "kind": names[kind]})
		}
	}()
	return nil, nil
}

func mapSnapshot(_ context.Context, m *rmap.Map, _ mapArgs) (any, error) {
	content := m.Map()
	keys := make([]string, 0, len(content))
	for key := range content {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	pairs := make([][2]Text, len(keys))
	for i, key := range keys {
		pairs[i] = [2]Text{Text(key), Text(content[key])}
	}
	return pairs, nil
}

func init() {
	register("map.join", mapJoin)
	register("map.close", mapClose)
	registerMap("subscribe", mapSubscribe)
	registerMap("snapshot", mapSnapshot)
	registerMap("len", func(_ context.Context, m *rmap.Map, _ mapArgs) (any, error) { return m.Len(), nil })
	registerMap("keys", func(_ context.Context, m *rmap.Map, _ mapArgs) (any, error) {
		keys := m.Keys()
		sort.Strings(keys)
		return texts(keys), nil
	})
	registerMap("get", func(_ context.Context, m *rmap.Map, args mapArgs) (any, error) {
		value, found := m.Get(string(args.Key))
		return map[string]any{"value": Text(value), "found": found}, nil
	})
	registerMap("get_values", func(_ context.Context, m *rmap.Map, args mapArgs) (any, error) {
		values, found := m.GetValues(string(args.Key))
		return map[string]any{"values": texts(values), "found": found}, nil
	})
	registerWrites()
	registerResets()
	registerMap("bench_set", benchSet)
	registerMap("bench_visible", benchVisible)
}

func registerWrites() {
	registerMap("set", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		prev, existed, err := m.SetEx(ctx, string(args.Key), string(args.Value))
		return map[string]any{"previous": Text(prev), "existed": existed}, err
	})
	registerMap("set_and_wait", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		prev, err := m.SetAndWait(ctx, string(args.Key), string(args.Value))
		return map[string]any{"previous": Text(prev)}, err
	})
	registerMap("set_if_absent", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		return m.SetIfNotExists(ctx, string(args.Key), string(args.Value))
	})
	registerMap("test_and_set", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		prev, existed, updated, err := m.TestAndSetEx(ctx, string(args.Key), string(args.Test), string(args.Value))
		return map[string]any{"previous": Text(prev), "existed": existed, "updated": updated}, err
	})
	registerMap("incr", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		return m.Inc(ctx, string(args.Key), args.Delta)
	})
	registerMap("append_values", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		values, err := m.AppendValues(ctx, string(args.Key), plain(args.Items)...)
		return texts(values), err
	})
	registerMap("append_unique_values", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		values, err := m.AppendUniqueValues(ctx, string(args.Key), plain(args.Items)...)
		return texts(values), err
	})
	registerMap("remove_values", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		values, removed, err := m.RemoveValues(ctx, string(args.Key), plain(args.Items)...)
		return map[string]any{"values": texts(values), "removed": removed}, err
	})
	registerMap("delete", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		prev, existed, err := m.DeleteEx(ctx, string(args.Key))
		return map[string]any{"previous": Text(prev), "existed": existed}, err
	})
	registerMap("test_and_delete", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		prev, existed, deleted, err := m.TestAndDeleteEx(ctx, string(args.Key), string(args.Test))
		return map[string]any{"previous": Text(prev), "existed": existed, "deleted": deleted}, err
	})
}

func registerResets() {
	registerMap("reset", func(ctx context.Context, m *rmap.Map, _ mapArgs) (any, error) { return nil, m.Reset(ctx) })
	registerMap("destroy", func(ctx context.Context, m *rmap.Map, _ mapArgs) (any, error) { return nil, m.Destroy(ctx) })
	registerMap("test_and_reset", func(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
		return m.TestAndReset(ctx, plain(args.Keys), plain(args.Tests))
	})
}

// benchArgs sizes a measurement.
type benchArgs struct {
	Writers int `json:"writers"` // goroutines that call Set at the same time
	Count   int `json:"count"`   // calls in all
	Size    int `json:"size"`    // bytes of a value
}

func filler(size int) string {
	value := make([]byte, size)
	for i := range value {
		value[i] = 'x'
	}
	return string(value)
}

// benchSet measures count calls of Set by writers goroutines, each on its own key, and answers seconds.
func benchSet(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
	value, each := filler(args.Size), args.Count/args.Writers
	var group sync.WaitGroup
	failures := make(chan error, args.Writers)
	start := time.Now()
	for writer := range args.Writers {
		group.Go(func() {
			key := fmt.Sprintf("bench-%d", writer)
			for range each {
				if _, err := m.Set(ctx, key, value); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	group.Wait()
	elapsed := time.Since(start).Seconds()
	select {
	case err := <-failures:
		return nil, err
	default:
	}
	return map[string]any{"elapsed_s": elapsed, "count": each * args.Writers}, nil
}

// benchVisible sets a key through this map and waits until a second replica of the same name reads the new value, as
// its user would: woken by a notification. It answers the times in microseconds.
func benchVisible(ctx context.Context, m *rmap.Map, args mapArgs) (any, error) {
	other, err := rmap.Join(ctx, m.Name, client())
	if err != nil {
		return nil, err
	}
	defer other.Close()
	changes := other.Subscribe()
	times := make([]float64, 0, args.Count)
	for i := range args.Count {
		want := fmt.Sprint(i)
		start := time.Now()
		go m.Set(ctx, "visible", want)
		for {
			if got, _ := other.Get("visible"); got == want {
				break
			}
			<-changes
		}
		times = append(times, float64(time.Since(start).Nanoseconds())/1000)
	}
	return times, nil
}
