package envoy

import (
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	fileaccessv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	otelaccessv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamaccessv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	otlpcommonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// CollectorCluster is the cluster of the OTLP collector. It stands in the bootstrap, where the fleet has one: a listener whose logger names a cluster
// that is not there is refused.
const CollectorCluster = "access_log_collector"

// Stdout is the path of the standard output.
const Stdout = "/dev/stdout"

// AccessLog is the access log of a connection manager or a proxy of streams: the zero value is none.
type AccessLog struct {
	Path      string            // a file, or Stdout
	JSON      bool              // lines are JSON objects of Fields
	Format    string            // of a line of text, "" = our own
	Fields    map[string]string // none = our own
	Collector bool              // to CollectorCluster, not to Path
}

// accessFormat names the Envoy route, and with it the Kubernetes object, of each request.
const accessFormat = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% " +
	"%DURATION%ms %REQ(:AUTHORITY)% -> %UPSTREAM_HOST% %ROUTE_NAME%\n"

// accessFields are the same as fields.
var accessFields = map[string]string{
	"start_time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%",
	"response_code": "%RESPONSE_CODE%", "response_flags": "%RESPONSE_FLAGS%", "duration": "%DURATION%", "authority": "%REQ(:AUTHORITY)%",
	"upstream_host": "%UPSTREAM_HOST%", "route_name": "%ROUTE_NAME%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%",
	"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
}

func (l AccessLog) fields() map[string]string {
	if len(l.Fields) > 0 {
		return l.Fields
	}
	return accessFields
}

// accessLogs makes the loggers of a connection manager or a proxy of streams, whose own line is format.
func accessLogs(l AccessLog, format string) ([]*accesslogv3.AccessLog, error) {
	var name string
	var config proto.Message
	switch {
	case l.Collector:
		name, config = "envoy.access_loggers.open_telemetry", l.otlp()
	case l.Path == "":
		return nil, nil
	case l.Path == Stdout: // opening /dev/stdout as a file fails where it is a socket or belongs to another user
		name, config = "envoy.access_loggers.stdout", &streamaccessv3.StdoutAccessLog{AccessLogFormat: &streamaccessv3.StdoutAccessLog_LogFormat{LogFormat: l.line(format)}}
	default:
		name, config = "envoy.access_loggers.file", &fileaccessv3.FileAccessLog{Path: l.Path, AccessLogFormat: &fileaccessv3.FileAccessLog_LogFormat{LogFormat: l.line(format)}}
	}
	packed, err := Any(config)
	if err != nil {
		return nil, err
	}
	return []*accesslogv3.AccessLog{{Name: name, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed}}}, nil
}

func (l AccessLog) line(format string) *corev3.SubstitutionFormatString {
	if l.JSON {
		fields := map[string]*structpb.Value{}
		for k, v := range l.fields() {
			fields[k] = structpb.NewStringValue(v)
		}
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}}}
	}
	if l.Format != "" {
		format = l.Format
	}
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: format}},
	}}
}

func (l AccessLog) otlp() *otelaccessv3.OpenTelemetryAccessLogConfig {
	attributes := &otlpcommonv1.KeyValueList{}
	fields := l.fields()
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		attributes.Values = append(attributes.Values, &otlpcommonv1.KeyValue{Key: k, Value: &otlpcommonv1.AnyValue{Value: &otlpcommonv1.AnyValue_StringValue{StringValue: fields[k]}}})
	}
	return &otelaccessv3.OpenTelemetryAccessLogConfig{
		LogName: "fleetgate",
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: CollectorCluster},
		}},
		Attributes: attributes,
	}
}
