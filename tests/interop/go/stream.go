package main

// Operations on Pulse streams: adding, readers and sinks whose events are emitted as they come, and the loops that the
// benchmark times.

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"goa.design/pulse/streaming"
	"goa.design/pulse/streaming/options"
)

func init() {
	register("stream.open", streamOpen)
	register("stream.add", streamAdd)
	register("stream.remove", streamRemove)
	register("stream.destroy", streamDestroy)
	register("stream.reader", streamReader)
	register("stream.reader.close", streamReaderClose)
	register("stream.sink", streamSink)
	register("stream.sink.ack", streamSinkAck)
	register("stream.sink.close", streamSinkClose)
	register("stream.bench.publish", streamBenchPublish)
	register("stream.bench.consume", streamBenchConsume)
}

// openSink is a sink and the events it has emitted and that nobody has acked yet.
type openSink struct {
	sink   *streaming.Sink
	lock   sync.Mutex
	events map[string]*streaming.Event
}

var (
	streams handles[*streaming.Stream]
	readers handles[*streaming.Reader]
	sinks   handles[*openSink]
)

func eventFields(handle string, event *streaming.Event) map[string]any {
	return map[string]any{
		"handle": handle, "id": event.ID, "name": Text(event.EventName), "payload": Text(event.Payload),
		"topic": Text(event.Topic), "stream": event.StreamName,
	}
}

func streamOpen(_ context.Context, raw json.RawMessage) (any, error) {
	var args struct {
		Handle  string `json:"handle"`
		Name    string `json:"name"`
		MaxLen  int    `json:"maxlen"`
		TTLMs   int64  `json:"ttl_ms"`
		Sliding bool   `json:"sliding"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	var chosen []options.Stream
	if args.MaxLen > 0 {
		chosen = append(chosen, options.WithStreamMaxLen(args.MaxLen))
	}
	ttl := time.Duration(args.TTLMs) * time.Millisecond
	if args.TTLMs > 0 && args.Sliding {
		chosen = append(chosen, options.WithStreamSlidingTTL(ttl))
	} else if args.TTLMs > 0 {
		chosen = append(chosen, options.WithStreamTTL(ttl))
	}
	stream, err := streaming.NewStream(args.Name, client(), chosen...)
	if err != nil {
		return nil, err
	}
	streams.put(args.Handle, stream)
	return nil, nil
}

func streamAdd(ctx context.Context, raw json.RawMessage) (any, error) {
	var args struct {
		Handle       string `json:"handle"`
		Name         Text   `json:"name"`
		Payload      Text   `json:"payload"`
		Topic        Text   `json:"topic"`
		OnlyIfExists bool   `json:"only_if_exists"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	stream, err := streams.get(args.Handle)
	if err != nil {
		return nil, err
	}
	var chosen []options.AddEvent
	if args.Topic != "" {
		chosen = append(chosen, options.WithTopic(string(args.Topic)))
	}
	if args.OnlyIfExists {
		chosen = append(chosen, options.WithOnlyIfStreamExists())
	}
	return stream.Add(ctx, string(args.Name), []byte(args.Payload), chosen...)
}

func streamRemove(ctx context.Context, raw json.RawMessage) (any, error) {
	var args struct {
		Handle string   `json:"handle"`
		IDs    []string `json:"ids"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	stream, err := streams.get(args.Handle)
	if err != nil {
		return nil, err
	}
	return nil, stream.Remove(ctx, args.IDs...)
}

func streamDestroy(ctx context.Context, raw json.RawMessage) (any, error) {
	var args struct {
		Handle string `json:"handle"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	stream, err := streams.get(args.Handle)
	if err != nil {
		return nil, err
	}
	return nil, stream.Destroy(ctx)
}

// consumerArgs are the options that readers and sinks share. Start is "new", "oldest", an id, or "at:<unix ms>".
type consumerArgs struct {
	Handle  string   `json:"handle"`
	Streams []string `json:"streams"`
	Name    string   `json:"name"`
	Start   string   `json:"start"`
	StartMs int64    `json:"start_ms"`
	Topic   string   `json:"topic"`
	Pattern string   `json:"pattern"`
	GraceMs int64    `json:"grace_ms"`
	NoAck   bool     `json:"no_ack"`
	AutoAck bool     `json:"auto_ack"`
}

func (args *consumerArgs) streams() ([]*streaming.Stream, error) {
	var found []*streaming.Stream
	for _, handle := range args.Streams {
		stream, err := streams.get(handle)
		if err != nil {
			return nil, err
		}
		found = append(found, stream)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no streams")
	}
	return found, nil
}

func streamReader(ctx context.Context, raw json.RawMessage) (any, error) {
	var args consumerArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	found, err := args.streams()
	if err != nil {
		return nil, err
	}
	chosen := []options.Reader{options.WithReaderBlockDuration(time.Second)}
	switch {
	case args.StartMs > 0:
		chosen = append(chosen, options.WithReaderStartAt(time.UnixMilli(args.StartMs)))
	case args.Start == "oldest":
		chosen = append(chosen, options.WithReaderStartAtOldest())
	case args.Start != "" && args.Start != "new":
		chosen = append(chosen, options.WithReaderStartAfter(args.Start))
	}
	if args.Topic != "" {
		chosen = append(chosen, options.WithReaderTopic(args.Topic))
	}
	if args.Pattern != "" {
		chosen = append(chosen, options.WithReaderTopicPattern(args.Pattern))
	}
	reader, err := found[0].NewReader(ctx, chosen...)
	if err != nil {
		return nil, err
	}
	for _, stream := range found[1:] {
		if err := reader.AddStream(ctx, stream); err != nil {
			return nil, err
		}
	}
	readers.put(args.Handle, reader)
	channel := reader.Subscribe()
	go func() {
		for event := range channel {
			emit("stream.event", eventFields(args.Handle, event))
		}
	}()
	return nil, nil
}

func streamReaderClose(_ context.Context, raw json.RawMessage) (any, error) {
	var args consumerArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	reader, err := readers.drop(args.Handle)
	if err != nil {
		return nil, err
	}
	reader.Close()
	return nil, nil
}

func sinkOptions(args *consumerArgs) []options.Sink {
	chosen := []options.Sink{options.WithSinkBlockDuration(500 * time.Millisecond)}
	if args.Start == "oldest" {
		chosen = append(chosen, options.WithSinkStartAtOldest())
	}
	if args.GraceMs > 0 {
		chosen = append(chosen, options.WithSinkAckGracePeriod(time.Duration(args.GraceMs)*time.Millisecond))
	}
	if args.NoAck {
		chosen = append(chosen, options.WithSinkNoAck())
	}
	if args.Topic != "" {
		chosen = append(chosen, options.WithSinkTopic(args.Topic))
	}
	if args.Pattern != "" {
		chosen = append(chosen, options.WithSinkTopicPattern(args.Pattern))
	}
	return chosen
}

// streamSink emits every event; with auto_ack it acks each one before.
func streamSink(ctx context.Context, raw json.RawMessage) (any, error) {
	var args consumerArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	found, err := args.streams()
	if err != nil {
		return nil, err
	}
	sink, err := found[0].NewSink(ctx, args.Name, sinkOptions(&args)...)
	if err != nil {
		return nil, err
	}
	opened := &openSink{sink: sink, events: map[string]*streaming.Event{}}
	sinks.put(args.Handle, opened)
	channel := sink.Subscribe()
	for _, stream := range found[1:] {
		if err := sink.AddStream(ctx, stream); err != nil {
			return nil, err
		}
	}
	go func() {
		for event := range channel {
			if args.AutoAck {
				if err := sink.Ack(context.Background(), event); err != nil {
					emit("fault", map[string]any{"error": err.Error()})
				}
			} else {
				opened.lock.Lock()
				opened.events[event.ID] = event
				opened.lock.Unlock()
			}
			emit("stream.event", eventFields(args.Handle, event))
		}
	}()
	return nil, nil
}

func streamSinkAck(ctx context.Context, raw json.RawMessage) (any, error) {
	var args struct {
		Handle string   `json:"handle"`
		IDs    []string `json:"ids"`
	}
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	opened, err := sinks.get(args.Handle)
	if err != nil {
		return nil, err
	}
	for _, id := range args.IDs {
		opened.lock.Lock()
		event, ok := opened.events[id]
		delete(opened.events, id)
		opened.lock.Unlock()
		if !ok {
			return nil, fmt.Errorf("no event %s", id)
		}
		if err := opened.sink.Ack(ctx, event); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func streamSinkClose(ctx context.Context, raw json.RawMessage) (any, error) {
	var args consumerArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	opened, err := sinks.drop(args.Handle)
	if err != nil {
		return nil, err
	}
	opened.sink.Close(ctx)
	return nil, nil
}

type streamBenchArgs struct {
	Name         string `json:"name"`
	Sink         string `json:"sink"`
	Events       int64  `json:"events"`
	Callers      int    `json:"callers"`
	MaxLen       int    `json:"maxlen"`
	PayloadBytes int    `json:"payload_bytes"`
}

// streamBenchPublish adds events from several goroutines and answers the seconds it took.
func streamBenchPublish(ctx context.Context, raw json.RawMessage) (any, error) {
	var args streamBenchArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	stream, err := streaming.NewStream(args.Name, client(), options.WithStreamMaxLen(args.MaxLen))
	if err != nil {
		return nil, err
	}
	payload := make([]byte, args.PayloadBytes)
	var left atomic.Int64
	left.Store(args.Events)
	failures := make(chan error, args.Callers)
	var group sync.WaitGroup
	begin := time.Now()
	for range args.Callers {
		group.Add(1)
		go func() {
			defer group.Done()
			for left.Add(-1) >= 0 {
				if _, err := stream.Add(ctx, "bench", payload); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	seconds := time.Since(begin).Seconds()
	select {
	case err := <-failures:
		return nil, err
	default:
		return seconds, nil
	}
}

// streamBenchConsume takes events from a sink and acks them in several goroutines; the stream holds them already.
func streamBenchConsume(ctx context.Context, raw json.RawMessage) (any, error) {
	var args streamBenchArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, err
	}
	stream, err := streaming.NewStream(args.Name, client(), options.WithStreamMaxLen(args.MaxLen))
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	sink, err := stream.NewSink(ctx, args.Sink, options.WithSinkStartAtOldest(),
		options.WithSinkBlockDuration(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	channel := sink.Subscribe()
	var left atomic.Int64
	left.Store(args.Events)
	finished := make(chan error, args.Callers+1)
	for range args.Callers {
		go func() {
			for event := range channel {
				if err := sink.Ack(ctx, event); err != nil {
					finished <- err
					return
				}
				if left.Add(-1) == 0 {
					finished <- nil
				}
			}
		}()
	}
	err = <-finished
	seconds := time.Since(begin).Seconds()
	sink.Close(ctx)
	return seconds, err
}
