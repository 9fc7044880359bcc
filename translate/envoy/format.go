package envoy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// commands are those of Envoy's access log that need nothing but themselves, as its version of deploy/tools.txt has them. A command that is in no table here is
// refused, for Envoy refuses a listener, with all that it serves, for one that it does not know. (Of those that it knows, CEL, TYPED_CEL, METADATA, COALESCE and COMMON_DURATION
// are not here: whether it takes them depends on expressions and names that only Envoy can read.)
var commands = words(`
	ACCESS_LOG_TYPE BYTES_RECEIVED BYTES_RETRANSMITTED BYTES_SENT CONNECTION_ID CONNECTION_TERMINATION_DETAILS CUSTOM_FLAGS DOWNSTREAM_CX_RTT
	DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_DIRECT_LOCAL_ADDRESS
	DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS DOWNSTREAM_DIRECT_REMOTE_PORT
	DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_LOCAL_ADDRESS
	DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_LOCAL_DNS_SAN DOWNSTREAM_LOCAL_EMAIL_SAN DOWNSTREAM_LOCAL_IP_SAN
	DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_LOCAL_PORT DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT
	DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_PEER_DNS_SAN
	DOWNSTREAM_PEER_EMAIL_SAN DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_IP_SAN DOWNSTREAM_PEER_ISSUER
	DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER_SERIAL DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_SUBJECT
	DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_PORT DOWNSTREAM_TLS_CIPHER DOWNSTREAM_TLS_GROUP DOWNSTREAM_TLS_SESSION_ID
	DOWNSTREAM_TLS_VERSION DOWNSTREAM_TRANSPORT_FAILURE_REASON DOWNSTREAM_WIRE_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DURATION FILTER_CHAIN_NAME
	GRPC_STATUS_NUMBER HOSTNAME LOCAL_REPLY_BODY PACKETS_RETRANSMITTED PROTOCOL REQUESTED_SERVER_NAME REQUEST_DURATION REQUEST_HEADERS_BYTES
	REQUEST_TX_DURATION RESPONSE_CODE RESPONSE_DURATION RESPONSE_FLAGS RESPONSE_FLAGS_LONG RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES
	RESPONSE_TX_DURATION ROUNDTRIP_DURATION ROUTE_NAME SPAN_ID STREAM_ID TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT TRACE_ID UNIQUE_ID UPSTREAM_CLUSTER
	UPSTREAM_CLUSTER_RAW UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_CONNECTION_POOL_READY_DURATION
	UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_HEADER_BYTES_RECEIVED
	UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HOST UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAME
	UPSTREAM_HOST_NAMES_ATTEMPTED UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_LOCAL_ADDRESS
	UPSTREAM_LOCAL_CLOSE_REASON UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN UPSTREAM_LOCAL_PORT UPSTREAM_LOCAL_URI_SAN UPSTREAM_PEER_CERT
	UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_ISSUER UPSTREAM_PEER_SUBJECT UPSTREAM_PEER_URI_SAN UPSTREAM_PROTOCOL UPSTREAM_REMOTE_ADDRESS
	UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID UPSTREAM_REMOTE_PORT UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_SERVER_NAME UPSTREAM_TLS_CIPHER UPSTREAM_TLS_GROUP
	UPSTREAM_TLS_SESSION_ID UPSTREAM_TLS_VERSION UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_WIRE_BYTES_RECEIVED UPSTREAM_WIRE_BYTES_SENT
	VIRTUAL_CLUSTER_NAME
`)

// Commands with a parameter in parentheses that may be left out.
var (
	times     = words("START_TIME START_TIME_LOCAL EMIT_TIME EMIT_TIME_LOCAL DOWNSTREAM_PEER_CERT_V_START DOWNSTREAM_PEER_CERT_V_END UPSTREAM_PEER_CERT_V_START UPSTREAM_PEER_CERT_V_END")
	addresses = words(`DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT
	DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT RESPONSE_CODE_DETAILS`)
)

// Commands that need a parameter; all but those of metadata take a length after it.
var (
	headers  = words("REQ REQUEST_HEADER RESP RESPONSE_HEADER TRAILER RESPONSE_TRAILER STREAM_INFO_REQ")
	states   = words("FILTER_STATE UPSTREAM_FILTER_STATE")
	metadata = words("CLUSTER_METADATA UPSTREAM_METADATA")
	texts    = words("DYNAMIC_METADATA ENVIRONMENT QUERY_PARAM")
)

// paths take a length and, here, nothing else.
var paths = words("PATH QUERY_PARAMS")

func words(s string) map[string]bool {
	out := map[string]bool{}
	for _, w := range strings.Fields(s) {
		out[w] = true
	}
	return out
}

var (
	// command is how Envoy finds one, by the same kind of expression: %COMMAND(parameter):length%.
	command     = regexp.MustCompile(`^%([A-Z0-9_]+)(?:\((.*?)\))?(?::([0-9]{1,9}))?%`)
	headerNames = regexp.MustCompile("^:?[-A-Za-z0-9!#$&'*+.^_`|~]+([?]:?[-A-Za-z0-9!#$&'*+.^_`|~]+)?$")
	state       = regexp.MustCompile(`^[^:]+(:(PLAIN|TYPED|FIELD:[^:]+))?$`)
	newline     = regexp.MustCompile(`%[-_0^#]*[1-9]*(E|O)?n`) // in a format of times
)

// Check says what is wrong with the format or the fields of a log, if anything is: Envoy would refuse every listener that has it.
func (l AccessLog) Check() error {
	if err := checkFormat(l.Format); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(l.Fields)) {
		if err := checkFormat(l.Fields[name]); err != nil {
			return fmt.Errorf("field %s: %w", name, err)
		}
	}
	return nil
}

// checkFormat reads a text as Envoy does: what is no command is text, and "%%" a percent sign.
func checkFormat(text string) error {
	for at := strings.IndexByte(text, '%'); at >= 0; at = strings.IndexByte(text, '%') {
		text = text[at:]
		if strings.HasPrefix(text, "%%") {
			text = text[2:]
			continue
		}
		m := command.FindStringSubmatch(text)
		if m == nil {
			return fmt.Errorf("at %.40q no command can be read: write %%COMMAND%% or %%COMMAND(parameter)%%, and a percent sign as %%%%", text)
		}
		if err := checkCommand(m[1], m[2], m[3] != ""); err != nil {
			return err
		}
		text = text[len(m[0]):]
	}
	return nil
}

// checkCommand holds a command against what its kind takes; length says that one is given.
func checkCommand(name, parameter string, length bool) error {
	wrong := func(what string) error { return fmt.Errorf("%%%s%% %s: correct it", name, what) }
	optional, needed := times[name] || addresses[name] || name == "GRPC_STATUS", headers[name] || states[name] || metadata[name] || texts[name]
	switch {
	case !commands[name] && !paths[name] && !optional && !needed:
		return fmt.Errorf("there is no command %%%s%% here: use another of Envoy's", name)
	case length && !(paths[name] || needed && !metadata[name]):
		return wrong("takes no length")
	case needed && parameter == "":
		return wrong("needs a parameter in parentheses")
	case (commands[name] || paths[name]) && parameter != "":
		return wrong("takes no parameter")
	case headers[name] && !headerNames.MatchString(parameter):
		return wrong("takes the name of a header, or two with a question mark between them")
	case states[name] && !state.MatchString(parameter):
		return wrong("takes a key, alone or with :PLAIN, :TYPED or :FIELD:name")
	case times[name] && newline.MatchString(parameter):
		return wrong("takes a format of times without newlines")
	case name == "GRPC_STATUS" && !slices.Contains([]string{"", "CAMEL_STRING", "SNAKE_STRING", "NUMBER"}, parameter):
		return wrong("takes CAMEL_STRING, SNAKE_STRING or NUMBER")
	}
	return nil
}
