package metrics

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxCode is the last of gRPC's codes.
const maxCode = codes.Unauthenticated

// Calls counts calls by operation and code. Only methods that the server has reach it, so
// the operations are as many as those.
type Calls struct {
	total *prometheus.CounterVec
	took  *prometheus.HistogramVec
	now   prometheus.Gauge
	known sync.Map // full method -> *operation
}

// operation keeps a method's counters, so that a call looks nothing up by labels.
type operation struct {
	name  string
	took  atomic.Pointer[prometheus.Observer] // of streams: never set
	codes [maxCode + 1]atomic.Pointer[prometheus.Counter]
}

func newCalls(r prometheus.Registerer, name, what string) *Calls {
	c := &Calls{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + name + "s_total", Help: "How " + what + " ended, streams included.",
		}, []string{"operation", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + name + "_duration_seconds", Help: "How long " + what + " took, streams left out.", Buckets: seconds(),
		}, []string{"operation"}),
		now: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + name + "s_in_flight", Help: "The " + what + " that are under way, streams included.",
		}),
	}
	r.MustRegister(c.total, c.took, c.now)
	return c
}

// of is the operation of a method.
func (c *Calls) of(method string) *operation {
	if o, ok := c.known.Load(method); ok {
		return o.(*operation)
	}
	name := method[strings.LastIndexByte(method, '/')+1:]
	o, _ := c.known.LoadOrStore(method, &operation{name: name})
	return o.(*operation)
}

func (o *operation) observer(c *Calls) prometheus.Observer {
	if took := o.took.Load(); took != nil {
		return *took
	}
	made := c.took.WithLabelValues(o.name)
	o.took.Store(&made)
	return made
}

func (c *Calls) ended(o *operation, err error) {
	code := min(status.Code(err), maxCode)
	counter := o.codes[code].Load()
	if counter == nil {
		made := c.total.WithLabelValues(o.name, code.String())
		counter = &made
		o.codes[code].Store(counter)
	}
	(*counter).Inc()
}

// Unary is a grpc.UnaryServerInterceptor.
func (c *Calls) Unary(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (answer any, err error) {
	o, began := c.of(info.FullMethod), time.Now()
	c.now.Inc()
	defer func() {
		c.now.Dec()
		c.ended(o, err)
		o.observer(c).Observe(time.Since(began).Seconds())
	}()
	return next(ctx, r)
}

// Stream is a grpc.StreamServerInterceptor.
func (c *Calls) Stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	o := c.of(info.FullMethod)
	c.now.Inc()
	defer func() {
		c.now.Dec()
		c.ended(o, err)
	}()
	return next(server, stream)
}
