package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Tracing is how a connection manager reports spans, by OTLP over gRPC.
type Tracing struct {
	Collector    string // cluster; it must be there: Envoy refuses a listener whose tracer names one that is not
	Authority    string // that it is called by; "" = the name of the cluster
	Headers      []Pair // of the reports
	ServiceName  string
	SpanName     string // "" = Envoy's own
	PerMillion   uint32 // of the traces that begin here
	IgnoreParent bool   // a caller's decision does not count, and PerMillion is of all traces
	Attributes   []Attribute
}

// Pair is a name with a value.
type Pair struct{ Name, Value string }

// Attribute is an attribute of each span; exactly one of the three gives its value.
type Attribute struct {
	Name                    string
	Header, Literal, Format string // a header of the request, a text, or a line of Envoy's format
}

// tracing makes the connection manager's part. Which traces are sampled is the sampler's matter alone: without one Envoy's own decision overrules that of a caller's span. A client
// cannot ask to be traced.
func (t *Tracing) tracing() (*hcmv3.HttpConnectionManager_Tracing, error) {
	config := &tracev3.OpenTelemetryConfig{
		GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: t.Collector, Authority: t.Authority}},
		},
		ServiceName: t.ServiceName,
	}
	for _, h := range t.Headers { // without %: Envoy sends no report with one, and does not take it back where it is doubled
		config.GrpcService.InitialMetadata = append(config.GrpcService.InitialMetadata, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
	}
	out := &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling:    &typev3.Percent{Value: 0},
		RandomSampling:    &typev3.Percent{Value: 100},
		OverallSampling:   &typev3.Percent{Value: 100},
		SpawnUpstreamSpan: wrapperspb.Bool(true), // a gateway is a hop of its own
		Operation:         t.SpanName,
	}
	var err error
	if config.Sampler, err = t.sampler(); err != nil {
		return nil, err
	}
	packed, err := Any(config)
	if err != nil {
		return nil, err
	}
	out.Provider = &tracev3.Tracing_Http{Name: "envoy.tracers.opentelemetry", ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: packed}}
	for _, a := range t.Attributes {
		out.CustomTags = append(out.CustomTags, a.tag())
	}
	return out, nil
}

// sampler samples a share of traces by their ids, and has a caller's decision go before where it counts.
func (t *Tracing) sampler() (*corev3.TypedExtensionConfig, error) {
	share, err := Any(&samplersv3.TraceIdRatioBasedSamplerConfig{SamplingPercentage: &typev3.FractionalPercent{Numerator: t.PerMillion, Denominator: typev3.FractionalPercent_MILLION}})
	out := &corev3.TypedExtensionConfig{Name: "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based", TypedConfig: share}
	if err != nil || t.IgnoreParent {
		return out, err
	}
	parent, err := Any(&samplersv3.ParentBasedSamplerConfig{WrappedSampler: out})
	return &corev3.TypedExtensionConfig{Name: "envoy.tracers.opentelemetry.samplers.parent_based", TypedConfig: parent}, err
}

func (a Attribute) tag() *tracingv3.CustomTag {
	out := &tracingv3.CustomTag{Tag: a.Name}
	switch {
	case a.Header != "":
		out.Type = &tracingv3.CustomTag_RequestHeader{RequestHeader: &tracingv3.CustomTag_Header{Name: a.Header}}
	case a.Literal != "":
		out.Type = &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: a.Literal}}
	default:
		out.Type = &tracingv3.CustomTag_Value{Value: a.Format}
	}
	return out
}
